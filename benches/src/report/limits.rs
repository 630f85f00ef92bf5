//! What kakehi may cost at most, and whether it did.
//!
//! A limit on a ratio holds within each round against the best of the proxies that it names, as far as they were
//! measured; the median over the rounds decides. A machine that others use may exceed a limit by accident, so one
//! that is not kept does not fail the run: it is shown.

use super::table::{Cell, Table};
use super::{Record, Rounds, growth, traffic};
use crate::measure::Finding;
use crate::point::Point;

/// One limit.
struct Limit<'a> {
    case: &'a str,
    of: Of,
    at_most: f64,
}

enum Of {
    /// Ratio of the CPU time per request to that of the best of these.
    Cpu(&'static [&'static str]),
    /// Ratio of the CPU time per request to that of the same proxy in another case, in the same round.
    CpuIn(&'static str),
    /// Memory per idle connection (KiB).
    Growth,
}

const ALL: &[&str] = &["nginx", "haproxy", "sozu"];

const LIMITS: [Limit<'static>; 8] = [
    Limit { case: "tls_handshake", of: Of::Cpu(&["nginx"]), at_most: 0.85 },
    Limit { case: "tls_handshake", of: Of::Cpu(&["sozu"]), at_most: 0.80 },
    Limit { case: "tls_resumed", of: Of::Cpu(&["nginx"]), at_most: 0.65 },
    Limit { case: "tls_ka64", of: Of::Cpu(ALL), at_most: 0.85 },
    Limit { case: "tls_big", of: Of::Cpu(ALL), at_most: 0.85 },
    Limit { case: "tls_idle", of: Of::Growth, at_most: 6.0 },
    Limit { case: "policy", of: Of::CpuIn("ka64"), at_most: 1.12 },
    Limit { case: "policy", of: Of::Cpu(&["nginx", "haproxy"]), at_most: 0.80 },
];

/// Of each point of the curve: CPU time per request to that of the best.
const CURVE: f64 = 0.80;

/// The limits of what was measured of `subject`; `None` if there are none.
pub(super) fn table(records: &[Record], subject: &str) -> Option<Table> {
    let cases = super::first_seen(records.iter().map(|record| record.case.as_str()));
    let points = cases.into_iter().filter(|case| case.parse::<Point>().is_ok());
    let points: Vec<Limit<'_>> =
        points.map(|case| Limit { case, of: Of::Cpu(ALL), at_most: CURVE }).collect();
    let limits = LIMITS.iter().chain(&points);
    let rows: Vec<Vec<Cell>> = limits.filter_map(|limit| limit.row(records, subject)).collect();
    let mut table = Table::new(&["case", "what", "at most", "measured", "kept"]);
    let any = !rows.is_empty();
    rows.into_iter().for_each(|row| table.row(row));
    any.then_some(table)
}

impl Limit<'_> {
    fn row(&self, records: &[Record], subject: &str) -> Option<Vec<Cell>> {
        let of_case: Vec<&Record> = records.iter().filter(|record| record.case == self.case).collect();
        let rounds = Rounds { of_case: &of_case, peer: subject, subject };
        let (what, measured) = match self.of {
            Of::Growth => ("KiB/connection".to_owned(), rounds.median_of(&growth)?),
            Of::CpuIn(case) => {
                let of_other: Vec<&Record> = records.iter().filter(|record| record.case == case).collect();
                let others = Rounds { of_case: &of_other, peer: subject, subject };
                let cpu = traffic(|found| found.cpu_us);
                let without = others.by_round(subject, &cpu);
                let ratios = rounds.by_round(subject, &cpu).into_iter();
                let ratios = ratios.filter_map(|(round, with)| Some(with / without.get(&round)?));
                let ratios = ratios.filter(|ratio| ratio.is_finite()).collect();
                (format!("CPU ratio to {case}"), super::median(ratios)?)
            }
            Of::Cpu(others) => {
                let cpu = traffic(|found| found.cpu_us);
                let (best, measured) = rounds.ratio_to_best(&cpu, others)?;
                (format!("CPU ratio to {}", best.join(", ")), measured)
            }
        };
        let kept = if measured <= self.at_most { "yes" } else { "no" };
        Some(vec![
            Cell::text(self.case),
            Cell::text(&what),
            Cell::number(Some(self.at_most), 2),
            Cell::number(Some(measured), 2),
            Cell::text(kept),
        ])
    }
}

impl Rounds<'_> {
    fn median_of(&self, of: &dyn Fn(&Finding) -> Option<f64>) -> Option<f64> {
        super::median(self.by_round(self.peer, of).into_values().collect())
    }

    /// The median ratio to the best of `others` in each round, and those of them that were measured.
    fn ratio_to_best<'b>(
        &self,
        of: &dyn Fn(&Finding) -> Option<f64>,
        others: &[&'b str],
    ) -> Option<(Vec<&'b str>, f64)> {
        let theirs: Vec<_> = others
            .iter()
            .map(|&other| (other, self.by_round(other, of)))
            .filter(|(_, rounds)| !rounds.is_empty())
            .collect();
        let best = |round: &u32| {
            let in_round = theirs.iter().filter_map(|(_, rounds)| rounds.get(round).copied());
            in_round.min_by(f64::total_cmp)
        };
        let ratios: Vec<f64> = self
            .by_round(self.peer, of)
            .into_iter()
            .filter_map(|(round, mine)| Some(mine / best(&round)?))
            .filter(|ratio| ratio.is_finite())
            .collect();
        Some((theirs.iter().map(|&(other, _)| other).collect(), super::median(ratios)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::CASES;

    fn record(peer: &str, round: u32, idle_kib: u64) -> Record {
        let finding = Finding::Idle { connections: 10, at_rest_kib: 100, idle_kib };
        let (case, fault_kinds) = ("tls_idle".into(), String::new());
        Record { case, peer: peer.into(), round, finding, faults: 0, fault_kinds }
    }

    #[test]
    fn every_limit_is_one_of_a_case() {
        for Limit { case, .. } in LIMITS {
            assert!(CASES.iter().any(|(known, _)| *known == case), "{case}");
        }
    }

    #[test]
    fn the_median_decides_whether_a_limit_is_kept() {
        let records = [(0, 110), (1, 150), (2, 900)].map(|(round, kib)| record("kakehi", round, kib));
        let text = table(&records, "kakehi").unwrap().to_string();
        assert!(text.contains("5.00 |  yes |"), "{text}");
        assert!(table(&records, "nginx").is_none());
        assert!(table(&[], "kakehi").is_none());
    }

    #[test]
    fn a_ratio_is_to_the_best_of_the_measured() {
        let records =
            [("kakehi", 120), ("nginx", 140), ("haproxy", 130)].map(|(peer, kib)| record(peer, 0, kib));
        let of_case: Vec<&Record> = records.iter().collect();
        let rounds = Rounds { of_case: &of_case, peer: "kakehi", subject: "kakehi" };
        let (best, ratio) = rounds.ratio_to_best(&growth, ALL).unwrap();
        assert_eq!((best, (ratio * 100.0).round()), (vec!["nginx", "haproxy"], 67.0));
        assert!(rounds.ratio_to_best(&growth, &["sozu"]).is_none());
    }
}
