//! Rhai scripts as plugins.
