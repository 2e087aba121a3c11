//! The programs' own messages (aya-log), passed on to the engine's log.

/// Passes records on to `tracing`.
#[derive(Debug, Clone, Copy)]
pub struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        match record.level() {
            log::Level::Error | log::Level::Warn => tracing::warn!(target: "ebpf", "{}", record.args()),
            log::Level::Info => tracing::info!(target: "ebpf", "{}", record.args()),
            log::Level::Debug | log::Level::Trace => tracing::debug!(target: "ebpf", "{}", record.args()),
        }
    }

    fn flush(&self) {}
}
