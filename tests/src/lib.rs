//! Harness and suites that drive the gateway from outside.
