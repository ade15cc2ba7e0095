//! HTTP/1 on the client side, before hyper reads it.

pub mod screen;
