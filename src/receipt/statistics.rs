//! From rows to headline (spec/receipt.md, "Headline"). Everything is binary64, added in order of
//! the rows.

use super::figures::{Headline, Metric, Rows};

/// The mean.
fn mean(values: &[f64]) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "counts of sequences")]
    let n = values.len() as f64;
    values.iter().sum::<f64>() / n
}

/// The standard error of the mean; nothing from one value.
fn standard_error(values: &[f64]) -> Option<f64> {
    #[allow(clippy::cast_precision_loss, reason = "counts of sequences")]
    let n = values.len() as f64;
    let middle = mean(values);
    let squares = values.iter().map(|v| (v - middle) * (v - middle)).sum::<f64>();
    (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt())
}

/// What the rows of a model and those of the reference come to. Columns that are not there give
/// nothing.
pub(super) fn headline(metric: Metric, rows: &Rows, reference: Option<&[f64]>) -> Headline {
    let mut all = Headline::new();
    let mut put = |name: &str, value: Option<f64>| {
        all.insert(name.to_owned(), value);
    };
    let column = |name: &str| rows.get(name).map_or(&[][..], Vec::as_slice);
    match metric {
        Metric::Kld => {
            let (nll, kld) = (column("nll"), column("kld"));
            let reference = reference.unwrap_or(&[]);
            let differences: Vec<f64> = nll.iter().zip(reference).map(|(a, b)| a - b).collect();
            let ratio = mean(&differences).exp();
            put("ppl", Some(mean(nll).exp()));
            put("ppl_reference", Some(mean(reference).exp()));
            put("ppl_ratio", Some(ratio));
            put("ppl_ratio_se", standard_error(&differences).map(|e| ratio * e));
            put("kld_mean", Some(mean(kld)));
            put("kld_se", standard_error(kld));
            put("top1_agreement", Some(mean(column("top1"))));
        }
        Metric::Cosine => {
            for name in ["cosine_pooled", "cosine_hidden"] {
                let values = column(name);
                put(&format!("{name}_mean"), Some(mean(values)));
                put(&format!("{name}_se"), standard_error(values));
                put(&format!("{name}_min"), values.iter().copied().reduce(f64::min));
            }
        }
    }
    all
}

/// Which of the largest divergences is the 99th percentile: so many are as large or larger, of `n`.
pub(super) fn largest_count(n: u64) -> u64 {
    n / 100 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headline_of_two_sequences_by_hand() {
        let column = |v: [f64; 2]| v.to_vec();
        let rows: Rows = [
            ("nll".to_owned(), column([1.0, 3.0])),
            ("kld".to_owned(), column([0.25, 0.75])),
            ("top1".to_owned(), column([1.0, 0.5])),
        ]
        .into();
        let found = headline(Metric::Kld, &rows, Some(&[1.0, 2.0]));
        let get = |name: &str| found[name].expect("two sequences");
        assert!((get("ppl") - 2f64.exp()).abs() < 1e-12);
        assert!((get("ppl_ratio") - 0.5f64.exp()).abs() < 1e-12);
        // Differences 0 and 1: deviation sqrt(1/2), over sqrt(2).
        assert!((get("ppl_ratio_se") - 0.5f64.exp() * 0.5).abs() < 1e-12);
        assert!((get("kld_mean") - 0.5).abs() < 1e-12 && (get("kld_se") - 0.25).abs() < 1e-12);
        assert!((get("top1_agreement") - 0.75).abs() < 1e-12);
        let one: Rows = [("cosine_pooled".to_owned(), vec![0.5])].into();
        assert_eq!(headline(Metric::Cosine, &one, None)["cosine_pooled_se"], None);
    }
}
