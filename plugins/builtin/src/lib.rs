//! The built-in security plugins.
