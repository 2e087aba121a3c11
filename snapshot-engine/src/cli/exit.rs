//! The end of the command: the one place where an error is printed and where exit codes are decided.

use std::error::Error as _;
use std::process::ExitCode;

use serde::Serialize;
use snapshot_engine::model::fault::{Class, Fault};
use snapshot_engine::pipeline;

use super::args::Format;
use super::out::{printable, printable_json};

/// 0 is for success; 130 and 143 (128 + signal) for an interrupted command.
fn code(error: &dyn Fault) -> u8 {
    let any: &(dyn std::error::Error + 'static) = error;
    if let Some(pipeline::Error::Interrupted { signal }) = any.downcast_ref() {
        return u8::try_from(128 + signal).unwrap_or(u8::MAX);
    }
    class_code(error.class())
}

fn class_code(class: Class) -> u8 {
    match class {
        Class::General => 1,
        Class::Arguments => 2,
        Class::NoContainer => 3,
        Class::Permission => 4,
        Class::Network => 5,
    }
}

/// An error as JSON.
#[derive(Debug, Serialize, PartialEq)]
struct Report {
    error: String,
    causes: Vec<String>,
    help: Option<String>,
    exit_code: u8,
}

impl Report {
    fn new(error: &dyn Fault) -> Report {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(e) = cause {
            causes.push(e.to_string());
            cause = e.source();
        }
        Report { error: error.to_string(), causes, help: error.remedy(), exit_code: code(error) }
    }

    fn render(&self, format: Format) -> String {
        match format {
            Format::Json => serde_json::to_string_pretty(self)
                .map_or_else(|_| printable(&self.error), |text| printable_json(&text)),
            Format::Text => {
                let mut text = format!("error: {}", printable(&self.error));
                for cause in &self.causes {
                    text.push_str(": ");
                    text.push_str(&printable(cause));
                }
                if let Some(help) = &self.help {
                    text.push_str("\nhelp: ");
                    text.push_str(&printable(help));
                }
                text
            }
        }
    }
}

/// Prints an error with its causes and remedy, and gives the exit code.
pub(crate) fn report(error: &dyn Fault, format: Format) -> ExitCode {
    let report = Report::new(error);
    eprintln!("{}", report.render(format));
    ExitCode::from(report.exit_code)
}

/// Prints what clap has to say. It exits with the code of wrong arguments. An argument's own error carries its remedy.
pub(crate) fn report_usage(error: &clap::Error, format: Format) -> ExitCode {
    let exit_code = class_code(Class::Arguments);
    let help = argument_remedy(error);
    match format {
        Format::Text => {
            let _ = error.print();
            if let Some(help) = help {
                eprintln!("help: {help}");
            }
        }
        Format::Json => {
            let text = error.to_string();
            let first = text.split("\n\n").next().unwrap_or_default().trim();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            let error = first.split_whitespace().collect::<Vec<_>>().join(" ");
            let help =
                help.or_else(|| Some("`snapshot-engine help` shows the commands and their options".into()));
            eprintln!("{}", Report { error, causes: Vec::new(), help, exit_code }.render(format));
        }
    }
    ExitCode::from(exit_code)
}

fn argument_remedy(error: &clap::Error) -> Option<String> {
    use snapshot_engine::container::places::NoSocket;
    use snapshot_engine::model::{options, reference, target};
    let source = error.source()?;
    None.or_else(|| source.downcast_ref::<target::Error>().and_then(Fault::remedy))
        .or_else(|| source.downcast_ref::<options::Error>().and_then(Fault::remedy))
        .or_else(|| source.downcast_ref::<reference::Error>().and_then(Fault::remedy))
        .or_else(|| source.downcast_ref::<NoSocket>().and_then(Fault::remedy))
}

#[cfg(test)]
mod tests {
    use snapshot_engine::pipeline::progress::Stage;

    use super::*;

    #[test]
    fn every_class_has_its_code() {
        for (class, expected) in [
            (Class::General, 1),
            (Class::Arguments, 2),
            (Class::NoContainer, 3),
            (Class::Permission, 4),
            (Class::Network, 5),
        ] {
            assert_eq!(code(&pipeline::Error::stage(Stage::Resolve, class, None, "x")), expected);
        }
        assert_eq!(code(&pipeline::Error::Interrupted { signal: 2 }), 130);
        assert_eq!(code(&pipeline::Error::Interrupted { signal: 15 }), 143);
    }

    #[test]
    fn an_error_is_printed_once_with_causes_and_remedy() {
        let cause = std::io::Error::other("no such thing");
        let error =
            pipeline::Error::stage(Stage::Resolve, Class::NoContainer, Some("look again".into()), cause);
        let report = Report::new(&error);
        assert_eq!(
            report.render(Format::Text),
            "error: could not find the container: no such thing\nhelp: look again"
        );
        let json: serde_json::Value = serde_json::from_str(&report.render(Format::Json)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"error": "could not find the container", "causes": ["no such thing"],
                               "help": "look again", "exit_code": 3})
        );
    }
}
