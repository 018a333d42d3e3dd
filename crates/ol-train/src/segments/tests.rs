//! Goal: the adapters on the way are those that a run of so many steps ends with
//! under the same schedule, whether it was killed or not; and they cost the
//! result no bit.
//! Method: a small model; a run that is stopped and goes on.

use ol_model::{LoraConfig, Pool};
use ol_runtime::ManualClock;

use super::ends;
use crate::adapter::tests::setting;
use crate::adapter::{AdapterError, AdapterJob, AdapterReport, LoraObjective, train_adapter};
use crate::options::TrainOptions;
use crate::trainer::{Observer, Progress, Silent};

/// Stops after so many steps of its own.
struct StopAfter(u32);

impl<O> Observer<O> for StopAfter {
    fn on_step(&mut self, _progress: &Progress) {
        self.0 = self.0.saturating_sub(1);
    }

    fn stop(&self) -> bool {
        self.0 == 0
    }
}

/// Remembers the parameters after every step.
#[derive(Default)]
struct All(Vec<Vec<f32>>);

impl Observer<LoraObjective<'_>> for All {
    fn on_step(&mut self, _progress: &Progress) {}

    fn on_update(&mut self, objective: &LoraObjective<'_>, step: u32) {
        assert_eq!(self.0.len() + 1, step as usize);
        self.0.push(objective.adapter.parameters().to_vec());
    }
}

fn run(
    dir: &std::path::Path,
    segments: u32,
    observer: &mut impl for<'a> Observer<LoraObjective<'a>>,
) -> Result<AdapterReport, AdapterError> {
    let (model, tokenizer, records) = setting();
    let checkpoint = dir.join("checkpoint");
    let job = AdapterJob {
        model: &model,
        tokenizer: &tokenizer,
        base_name: "test-base",
        records: &records[..12],
        lora: LoraConfig::all_linear(2),
        options: TrainOptions {
            batch_tokens: 40,
            learning_rate: 1e-2,
            checkpoint_every: 2,
            ..TrainOptions::default()
        },
        epochs: Some(2.0),
        question_weight: 1.0,
        held_out_fraction: 0.1,
        out_dir: dir,
        segments,
        checkpoint: Some(&checkpoint),
    };
    train_adapter(&job, &Pool::new(1), &ManualClock::new(0), observer)
}

#[test]
fn adapters_on_the_way_are_kept() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let mut all = All::default();
    let kept = run(dirs[0].path(), 3, &mut all).unwrap();
    let ends = ends(kept.steps, 3);
    assert_eq!((ends.len(), kept.segments.len()), (2, 2));
    for (adapter, end) in kept.segments.iter().zip(&ends) {
        assert_eq!(adapter.parameters(), all.0[*end as usize - 1]);
    }
    assert_eq!(all.0.last().unwrap(), kept.adapter.parameters());
    // They change nothing.
    let alone = run(dirs[1].path(), 1, &mut Silent).unwrap();
    assert!(alone.segments.is_empty() && !dirs[1].path().join("segments").exists());
    assert_eq!(alone.adapter_hash, kept.adapter_hash);
    // Stopped again and again, a few steps at a time.
    let mut resumed = run(dirs[2].path(), 3, &mut StopAfter(3)).unwrap();
    assert!(!resumed.finished && resumed.segments.is_empty());
    while !resumed.finished {
        resumed = run(dirs[2].path(), 3, &mut StopAfter(3)).unwrap();
    }
    let hashes = |report: &AdapterReport| -> Vec<_> {
        report.segments.iter().map(ol_model::Lora::hash).collect()
    };
    assert_eq!(hashes(&resumed), hashes(&kept));
    assert_eq!(resumed.adapter_hash, kept.adapter_hash);
}

#[test]
fn what_cannot_be_kept_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("segments"),
        b"a file where a folder belongs",
    )
    .unwrap();
    let failed = run(dir.path(), 3, &mut Silent).unwrap_err();
    assert!(matches!(failed, AdapterError::Weights(_)), "{failed}");
    for segments in [0, 9] {
        let refused = run(dir.path(), segments, &mut Silent).unwrap_err();
        assert!(matches!(refused, AdapterError::Job(_)));
    }
}

#[test]
fn parts_are_equal_and_none_is_empty() {
    let cases: [(u32, u32, &[u32]); 6] = [
        (30, 3, &[10, 20]),
        (31, 3, &[11, 21]),
        (2, 8, &[1]),
        (1, 8, &[]),
        (10, 1, &[]),
        (u32::MAX, 2, &[1 << 31]),
    ];
    for (steps, n, expected) in cases {
        assert_eq!(ends(steps, n), expected, "{steps} steps in {n}");
    }
}
