//! The portcullis gateway: command line, telemetry and admin.
