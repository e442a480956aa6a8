//! Medians of interleaved rounds, and how sure they are.

use serde::Serialize;

/// A median with the interval that holds it with at least 95 % probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Median {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    pub rounds: usize,
}

/// The median of the samples. The interval is that of order statistics: the number of samples below the true median is
/// binomial(n, 1/2) whatever their distribution. With fewer than 6 samples it is the whole range (and below 95 %).
///
/// None when there is no sample.
pub fn median(samples: &[f64]) -> Option<Median> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rounds = sorted.len();
    let (first, last) = (*sorted.first()?, *sorted.last()?);
    let value = (sorted[(rounds - 1) / 2] + sorted[rounds / 2]) / 2.0;
    let cut = tail_rank(rounds);
    let (low, high) = if cut == 0 { (first, last) } else { (sorted[cut - 1], sorted[rounds - cut]) };
    Some(Median { value, low, high, rounds })
}

/// The largest k for which [sample k, sample n+1-k] holds the median with 95 %: P(binomial(n, 1/2) < k) <= 0.025.
fn tail_rank(rounds: usize) -> usize {
    let mut probability = 0.5_f64.powi(i32::try_from(rounds).unwrap_or(i32::MAX));
    let mut below = 0.0;
    for k in 0..rounds {
        below += probability;
        if below > 0.025 {
            return k;
        }
        probability *= (rounds - k) as f64 / (k + 1) as f64;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::{median, tail_rank};

    #[test]
    fn ranks_are_those_of_the_published_tables() {
        // Source: tables of the sign test at 5 %, two-sided (n: smallest count + 1).
        for (rounds, rank) in [(5, 0), (6, 1), (9, 2), (12, 3), (20, 6), (30, 10)] {
            assert_eq!(tail_rank(rounds), rank, "{rounds} rounds");
        }
    }

    #[test]
    fn the_interval_holds_the_median() {
        let samples: Vec<f64> = (1..=20).map(f64::from).collect();
        let median = median(&samples).unwrap();
        assert_eq!((median.value, median.low, median.high), (10.5, 6.0, 15.0));
        assert_eq!(super::median(&[]), None);
    }
}
