//! Every stop as a line of its own, for whoever has a better plot in mind (RFC 4180).

use std::fmt::Write;

use super::report::Report;

const HEAD: &str = "axis,label,file_system,upper_bytes,files,tasks,workload,contender,number,gate,window_ns,drain_ns,capture_ns,longest_stop_ns,\
felt_ns,sham_ns,felt_around_ns,sham_around_ns,clocks,held,inodes,bytes,attempts,rounds,dirty,copied,cloned,command_ns,cpu_ns";

impl Report {
    /// The windows of all series.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut out = format!("{HEAD}\r\n");
        for s in &self.series {
            let c = &s.scene;
            for (number, w) in s.windows.iter().enumerate() {
                let mut row = vec![quoted(&c.axis), quoted(&c.label), quoted(&c.file_system)];
                row.extend([c.upper_bytes, c.files, c.tasks].map(|n| n.to_string()));
                row.extend([quoted(&c.workload), quoted(&s.contender), number.to_string()]);
                row.push(w.gate.map(|g| g.to_string()).unwrap_or_default());
                row.extend([w.window, w.drain, w.capture, w.longest_stop].map(|n| n.0.to_string()));
                let maybe = [w.felt, w.sham, w.around, w.sham_around];
                row.extend(maybe.map(|n| n.map(|n| n.0.to_string()).unwrap_or_default()));
                row.push(w.clocks.map(|v| word(&v)).unwrap_or_default());
                row.extend([w.held, w.inodes, w.bytes].map(|n| n.to_string()));
                row.extend([w.attempts, w.rounds].map(|n| n.to_string()));
                row.extend([w.dirty, w.copied, w.cloned, w.command.0, w.cpu.0].map(|n| n.to_string()));
                // Writing to a String cannot fail.
                let _ = write!(out, "{}\r\n", row.join(","));
            }
        }
        out
    }
}

/// A variant's name as JSON has it.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pause::blank;
    use super::super::report::{Scene, Series, Window};

    #[test]
    fn every_row_has_every_column() {
        let scene = Scene { workload: "log=2:light,churn \"x\"".into(), ..Scene::default() };
        let mut report = blank(String::new());
        report.series.push(Series::new(scene, "docker commit".into(), None, vec![Window::default(); 3]));
        let csv = report.csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 4);
        // The one quoted field has one comma inside.
        assert_eq!(lines[1].split(',').count(), lines[0].split(',').count() + 1);
        assert!(lines[1].contains("\"log=2:light,churn \"\"x\"\"\""));
    }
}
