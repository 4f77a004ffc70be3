//! When certificates end.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::diagnostic::{Diagnostic, Severity};
use crate::config::resource::credentials::Validity;
use crate::config::resource::ssl::Ssl;
use crate::config::standalone::Resources;

/// A certificate that ends sooner than this is worth a warning.
const SOON_DAYS: i64 = 30;
const DAY: i64 = 86_400;

/// When the first certificate of an `ssl` object ends, in Unix seconds.
pub fn ends(ssl: &Ssl) -> Option<i64> {
    let ends = ssl.certs.iter().filter_map(|pair| pair.validity());
    ends.map(|validity| validity.until).min()
}

/// One warning for each object with a certificate that has ended, ends within 30 days, or is not
/// valid yet. `file` is what they call the standalone file.
pub fn warnings(resources: &Resources, file: &Path) -> Vec<Diagnostic> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    let enabled = resources.ssls.iter().filter(|ssl| ssl.enabled);
    enabled
        .filter_map(|ssl| {
            let pairs = ssl.certs.iter().filter_map(|pair| pair.validity());
            let message = pairs.filter_map(|pair| judge(pair, now)).next()?;
            Some(Diagnostic {
                file: file.into(),
                position: Some(*ssl.position),
                path: "ssls".to_owned(),
                message: format!("ssl {}: {message}", ssl.id),
                severity: Severity::Warning,
            })
        })
        .collect()
}

fn judge(validity: Validity, now: i64) -> Option<String> {
    let days = |seconds: i64| match seconds / DAY {
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    };
    if validity.until <= now {
        let ago = days(now - validity.until);
        Some(format!("the certificate expired {ago} ago"))
    } else if validity.from > now {
        let left = days(validity.from - now);
        Some(format!(
            "the certificate is not valid before {left} from now"
        ))
    } else if validity.until - now < SOON_DAYS * DAY {
        let left = days(validity.until - now);
        Some(format!("the certificate expires in {left}"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worth_a_warning() {
        let judged = |from, until| {
            judge(
                Validity {
                    from: from * DAY,
                    until: until * DAY,
                },
                0,
            )
        };
        assert_eq!(judged(-10, 90), None);
        assert_eq!(judged(-10, 30), None);
        assert_eq!(
            judged(-10, 29).unwrap(),
            "the certificate expires in 29 days"
        );
        assert_eq!(judged(-10, 1).unwrap(), "the certificate expires in 1 day");
        assert_eq!(
            judged(-10, -2).unwrap(),
            "the certificate expired 2 days ago"
        );
        let early = "the certificate is not valid before 3 days from now";
        assert_eq!(judged(3, 90).unwrap(), early);
    }
}
