//! Logs on standard error, as text for people or JSON for collectors.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// The API client logs each failed request as an error, without saying which; whoever asked says so.
const DEFAULT: &str = "info,kube_client=off";
/// Libraries say too much at this level.
const VERBOSE: &str = "debug,hyper_util=info,rustls=info,tower=info,kube_client=off";

/// Installs the process's subscriber. `RUST_LOG` chooses what is shown; without it, `info`.
pub fn init(format: LogFormat) {
    init_with(format, false);
}

/// As [`init`]; if verbose, `debug` in place of `info`.
pub fn init_with(format: LogFormat, verbose: bool) {
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let (filter, mistake) = match filter(&asked) {
        _ if asked.is_empty() && verbose => (EnvFilter::new(VERBOSE), None),
        chosen => chosen,
    };
    let installed = match format {
        LogFormat::Text => text(filter, std::io::stderr, std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => json(filter, std::io::stderr).try_init(),
    };
    if installed.is_err() {
        tracing::debug!("a log subscriber was installed already");
    }
    if let Some(error) = mistake {
        tracing::warn!("RUST_LOG={asked:?} is not understood ({error}); showing info and above");
    }
}

/// The filter to use, and what was wrong with the one asked for.
fn filter(asked: &str) -> (EnvFilter, Option<String>) {
    if asked.is_empty() {
        return (EnvFilter::new(DEFAULT), None);
    }
    match EnvFilter::try_new(asked) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(DEFAULT), Some(error.to_string())),
    }
}

fn text<W>(filter: EnvFilter, writer: W, colours: bool) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_target(false)
        .with_ansi(colours)
        .finish()
}

/// One object a line: the fields of the event beside `timestamp`, `level`, `target` and the spans.
fn json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).json().flatten_event(true).finish()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn say_something() {
        tracing::debug!("too much");
        tracing::info!(namespace = "shop", name = "web", "programmed");
    }

    #[test]
    fn a_json_line_carries_the_fields_of_its_event_and_debug_is_left_out() {
        let written = Written::default();
        let writer = written.clone();
        tracing::subscriber::with_default(json(filter("").0, move || writer.clone()), say_something);
        let text = written.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in [r#""level":"INFO""#, r#""message":"programmed""#, r#""namespace":"shop""#] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn a_text_line_for_a_file_has_no_colours() {
        let written = Written::default();
        let writer = written.clone();
        tracing::subscriber::with_default(
            text(filter("debug").0, move || writer.clone(), false),
            say_something,
        );
        let text = written.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.contains("INFO programmed namespace=\"shop\" name=\"web\"") && !text.contains('\x1b'),
            "{text}"
        );
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_reported_and_info_is_shown() {
        let (chosen, mistake) = filter("daemon=loudly");
        assert_eq!(chosen.to_string(), EnvFilter::new(DEFAULT).to_string());
        assert!(mistake.is_some());
        assert!(filter("warn,daemon=debug").1.is_none());
    }
}
