//! Medians, spread and ratios, as a Markdown table.

use super::contender::{Contender, Kind};
use super::rows::{Counts, Goal, Metric};

/// The figures of one metric: for each contender one for each round, `None` where the run was
/// invalid.
pub struct Figures {
    /// What they are.
    pub metric: Metric,
    /// By contender, by round.
    pub rounds: Vec<Vec<Option<f64>>>,
}

/// The table of everything that was measured.
pub fn table(contenders: &[Contender], figures: &[Figures]) -> String {
    let yardstick = contenders
        .iter()
        .position(|known| known.kind == Kind::Haproxy);
    let mut head = String::from("| what |");
    for contender in contenders {
        head += &format!(" {} |", contender.name);
    }
    for contender in others(contenders, yardstick) {
        head += &format!(" {} / HAProxy |", contenders[contender].name);
    }
    head += " goal | floor |\n";
    let columns = head.matches('|').count() - 1;
    let mut text = head + "|" + &"---|".repeat(columns) + "\n";
    for row in figures {
        text += &format!("| {} |", row.metric.name);
        for rounds in &row.rounds {
            let valid: Vec<f64> = rounds.iter().flatten().copied().collect();
            text += &cell(&valid, rounds.len(), row.metric.counts);
        }
        for contender in others(contenders, yardstick) {
            text += &match (yardstick, row.metric.goal) {
                (Some(yardstick), Goal::Ratio(_) | Goal::Compared) => {
                    let (ours, theirs) = (&row.rounds[contender], &row.rounds[yardstick]);
                    match row.metric.counts {
                        Counts::Median => {
                            let ratios = ratios(ours, theirs);
                            cell(&ratios, ratios.len(), Counts::Median)
                        }
                        Counts::Least => format!(" {} |", short(least(ours) / least(theirs))),
                    }
                }
                _ => " |".to_owned(),
            };
        }
        text += &match row.metric.goal {
            Goal::Ratio(goal) => format!(" ratio ≤ {goal} |"),
            Goal::Absolute(goal) => format!(" ≤ {goal} |"),
            Goal::Compared | Goal::None => " |".to_owned(),
        };
        text += &match row.metric.floor {
            Some(floor) => format!(" {floor} |\n"),
            None => " |\n".to_owned(),
        };
    }
    text
}

fn others(contenders: &[Contender], yardstick: Option<usize>) -> impl Iterator<Item = usize> {
    (0..contenders.len()).filter(move |index| yardstick.is_some() && yardstick != Some(*index))
}

/// Round by round: what disturbs a whole round disturbs both sides of its ratio.
fn ratios(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Vec<f64> {
    let pairs = ours.iter().zip(theirs);
    let both = pairs.filter_map(|(ours, theirs)| Some(((*ours)?, (*theirs)?)));
    both.filter(|(_, theirs)| *theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs)
        .collect()
}

fn least(rounds: &[Option<f64>]) -> f64 {
    let valid = rounds.iter().flatten().copied();
    valid.fold(f64::INFINITY, f64::min)
}

fn cell(values: &[f64], rounds: usize, counts: Counts) -> String {
    let Some(median) = median(values) else {
        return " invalid |".to_owned();
    };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let counted = match counts {
        Counts::Median => median,
        Counts::Least => least,
    };
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let invalid = match rounds - values.len() {
        0 => String::new(),
        invalid => format!(", {invalid} invalid"),
    };
    let [counted, least, most] = [counted, least, most].map(short);
    format!(" {counted} ({least}–{most}{invalid}) |")
}

/// Three digits that say something.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        even if even % 2 == 0 => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}
