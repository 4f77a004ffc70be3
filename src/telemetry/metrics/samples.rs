//! Reading a scrape back: the counters of the process before this one (an upgrade).

use std::collections::HashMap;

/// A line of a scrape.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    /// Name and labels as they are written.
    pub series: &'a str,
    /// The name.
    pub name: &'a str,
    /// The labels.
    pub labels: HashMap<&'a str, String>,
    /// The value as it is written.
    pub value: &'a str,
}

/// The lines of a scrape that can be read.
pub(super) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, labels(rest.strip_suffix('}')?)?),
            None => (series, HashMap::new()),
        };
        (!name.starts_with('#')).then_some(Sample {
            series,
            name,
            labels,
            value,
        })
    })
}

/// `a="1",b="2"`; `None` when it is something else.
fn labels(mut text: &str) -> Option<HashMap<&str, String>> {
    let mut labels = HashMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(name, value);
        let rest = &rest[end + 1..];
        text = rest.strip_prefix(',').unwrap_or(rest);
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_out_as_they_went_in() {
        let text = "# HELP a b.\na 1\nb_total{x=\"1\",y=\"a,\\\"\\\\\\n}\"} 2.5\nbroken{x=\"1 3\n{} \n# EOF\n";
        let found: Vec<Sample<'_>> = samples(text).collect();
        assert_eq!(found[0].name, "a");
        assert_eq!((found[1].name, found[1].value), ("b_total", "2.5"));
        assert_eq!(found[1].labels["x"], "1");
        assert_eq!(found[1].labels["y"], "a,\"\\\n}");
        assert!(found.iter().all(|sample| sample.name != "broken"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[a{}=\"\\\\, \n#1]{0,60}") {
            samples(&text).count();
        }
    }
}
