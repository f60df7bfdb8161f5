//! Logs on stderr, above the progress bars.

use std::io::{self, IsTerminal, Write};

use headwater_cli::config::{LogConfig, LogFormat, LogLevel};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::progress;

/// Begins to log; `RUST_LOG` says more than the config where it is set.
pub fn init(config: &LogConfig) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter(config.level)));
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Stderr);
    // A second call, in tests, leaves the first as it is.
    let _ = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => {
            let colour = io::stderr().is_terminal() && !set("NO_COLOR");
            builder.with_target(false).with_ansi(colour).try_init()
        }
    };
}

/// Headwater at `level`, others when they warn. librdkafka repeats itself twenty times a second while a
/// broker is away, and Headwater says the same once: it is for those who look closely.
fn filter(level: LogLevel) -> String {
    let word = level.as_str();
    let kafka = if matches!(level, LogLevel::Debug | LogLevel::Trace) { word } else { "off" };
    format!("warn,librdkafka={kafka},headwater={word}")
}

/// Writes a line with the progress bars out of the way.
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

/// One log line; written when it is complete.
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Nobody is left to tell when stderr is gone.
        let _ = progress::bars().suspend(|| io::stderr().write_all(&self.0));
    }
}
