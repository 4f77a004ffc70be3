//! Which of many certificates a server name gets.

use std::collections::HashMap;

/// Values by server name: exact names before wildcards, the longest wildcard first, `*` last.
///
/// A `*` stands within one label: `*.a.test` is for `x.a.test`, neither for `a.test` nor for
/// `y.x.a.test` (as certificates have it, RFC 6125 §6.4.3); `*a.test`, which APISIX accepts, is for
/// `a.test` and `xa.test`. A lone `*` is for every name. The cost of a look-up does not depend on
/// how many names there are.
#[derive(Debug)]
pub struct Names<T> {
    exact: HashMap<String, T>,
    /// By what follows the `*`.
    wildcard: HashMap<String, T>,
    any: Option<T>,
    /// Whether some wildcard has no dot behind its `*`, so that more than one suffix can fit.
    within_label: bool,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Names {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            any: None,
            within_label: false,
        }
    }
}

impl<T> Names<T> {
    /// Adds a name, in lower case without a trailing dot. The first value of a name stays.
    pub fn add(&mut self, name: &str, value: T) {
        match name.strip_prefix('*') {
            Some("") => {
                self.any.get_or_insert(value);
            }
            Some(suffix) => {
                self.within_label |= !suffix.starts_with('.');
                self.wildcard.entry(suffix.to_owned()).or_insert(value);
            }
            None => {
                self.exact.entry(name.to_owned()).or_insert(value);
            }
        }
    }

    /// The value for a name, in lower case without a trailing dot.
    pub fn find(&self, name: &str) -> Option<&T> {
        self.exact
            .get(name)
            .or_else(|| self.find_wildcard(name))
            .or(self.any.as_ref())
    }

    fn find_wildcard(&self, name: &str) -> Option<&T> {
        let first_label = name.find('.').unwrap_or(name.len());
        if self.within_label {
            let longest_first = (0..=first_label).filter_map(|start| name.get(start..));
            let mut fitting = longest_first.filter(|suffix| !suffix.is_empty());
            return fitting.find_map(|suffix| self.wildcard.get(suffix));
        }
        // An empty label is no label.
        (first_label > 0)
            .then(|| self.wildcard.get(&name[first_label..]))
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str], wanted: &str) -> Option<String> {
        let mut index = Names::default();
        for name in names {
            index.add(name, (*name).to_owned());
        }
        index.find(wanted).cloned()
    }

    #[test]
    fn exact_before_wildcard_before_any() {
        let names = ["*", "*.a.test", "x.a.test"];
        assert_eq!(found(&names, "x.a.test").unwrap(), "x.a.test");
        assert_eq!(found(&names, "y.a.test").unwrap(), "*.a.test");
        assert_eq!(found(&names, "a.test").unwrap(), "*");
        assert_eq!(found(&names, "localhost").unwrap(), "*");
    }

    #[test]
    fn a_star_is_one_label() {
        let names = ["*.a.test"];
        assert_eq!(found(&names, "a.test"), None);
        assert_eq!(found(&names, ".a.test"), None);
        assert_eq!(found(&names, "y.x.a.test"), None);
        assert_eq!(found(&names, "x.a.test.b"), None);
        // The second look at a shorter wildcard and at `*`, which APISIX does not take.
        let names = ["*.x.a.test", "*.a.test", "*"];
        assert_eq!(found(&names, "x.a.test").unwrap(), "*.a.test");
        assert_eq!(found(&names, "z.y.x.a.test").unwrap(), "*");
    }

    #[test]
    fn a_star_without_a_dot_stays_within_its_label() {
        let names = ["*dot.test", "*.test"];
        assert_eq!(found(&names, "dot.test").unwrap(), "*dot.test");
        assert_eq!(found(&names, "mydot.test").unwrap(), "*dot.test");
        assert_eq!(found(&names, "other.test").unwrap(), "*.test");
        assert_eq!(found(&names, "a.dot.test"), None);
        assert_eq!(found(&["*host"], "localhost").unwrap(), "*host");
    }

    #[test]
    fn the_first_of_several_stays() {
        let mut index = Names::default();
        for (name, value) in [
            ("a", 1),
            ("a", 2),
            ("*.a", 3),
            ("*.a", 4),
            ("*", 5),
            ("*", 6),
        ] {
            index.add(name, value);
        }
        assert_eq!(index.find("a"), Some(&1));
        assert_eq!(index.find("x.a"), Some(&3));
        assert_eq!(index.find("b"), Some(&5));
    }
}
