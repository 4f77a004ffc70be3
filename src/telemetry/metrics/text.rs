//! The older text format, for scrapers that do not ask for OpenMetrics.

/// OpenMetrics text as Prometheus' text format 0.0.4: there a counter's type names the series with
/// its `_total`, and there are no units and no end mark. APISIX's names without `_total`, which
/// OpenMetrics leaves untyped, are counters.
pub(super) fn from_openmetrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help: Option<(&str, &str)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let (total, kind) = match kind {
                "counter" => ("_total", kind),
                "unknown" => ("", "counter"),
                kind => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                out.push_str(&format!("# HELP {name}{total} {help}\n"));
            }
            out.push_str(&format!("# TYPE {name}{total} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_name_the_series_that_follow() {
        let text = "# HELP a Help of a.\n# TYPE a counter\na_total{x=\"1\"} 1\n# HELP b_seconds B.\n\
                    # TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds 2\n# HELP c C.\n\
                    # TYPE c unknown\nc 3\n# EOF\n";
        assert_eq!(
            from_openmetrics(text),
            "# HELP a_total Help of a.\n# TYPE a_total counter\na_total{x=\"1\"} 1\n\
             # HELP b_seconds B.\n# TYPE b_seconds gauge\nb_seconds 2\n# HELP c C.\n\
             # TYPE c counter\nc 3\n"
        );
    }
}
