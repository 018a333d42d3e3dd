//! The measured losses as one file of the repository.
//!
//! xz over, little-endian: `OLTRUTH2`; the setting as JSON after its length;
//! for each domain its name after its length, the hash of its experiment, the
//! numbers of records, losses and runs; for each run its number, which records
//! were kept (one bit each, lowest first) and the losses as `f32`. All lengths
//! and numbers are `u32`.

use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context, ensure};

use crate::domain::{Domain, KINDS};
use crate::log::Runs;
use crate::plan::{self, Run};
use crate::setting::Setting;

const MAGIC: &[u8; 8] = b"OLTRUTH2";

/// Compresses as well as xz can.
const EFFORT: u32 = 9;

/// Writes what the logs hold.
pub(crate) fn write(
    path: &Path,
    setting: &Setting,
    domains: &[Domain],
    measured: &[Runs],
) -> anyhow::Result<usize> {
    let mut bytes = MAGIC.to_vec();
    let number = |n: usize| u32::try_from(n).map(u32::to_le_bytes);
    let json = serde_json::to_vec(setting)?;
    bytes.extend(number(json.len())?);
    bytes.extend(json);
    for (domain, runs) in domains.iter().zip(measured) {
        bytes.extend(number(domain.name.len())?);
        bytes.extend(domain.name.as_bytes());
        bytes.extend(domain.hash.as_slice());
        let n_losses = KINDS * domain.n_queries();
        for n in [domain.pool.len(), n_losses, runs.len()] {
            bytes.extend(number(n)?);
        }
        for (run_number, losses) in runs {
            let run = Run::from_number(*run_number).context("a run of another version")?;
            bytes.extend(run_number.to_le_bytes());
            bytes.extend(bitmap(&plan::kept(domain, run.kept)));
            bytes.extend(losses.iter().flat_map(|loss| loss.to_le_bytes()));
        }
    }
    let mut file = xz2::write::XzEncoder::new(Vec::new(), EFFORT);
    file.write_all(&bytes)?;
    let packed = file.finish()?;
    std::fs::write(path, &packed).with_context(|| path.display().to_string())?;
    Ok(packed.len())
}

/// Losses by the number of their run, of one domain.
pub(crate) fn read(path: &Path, domain: &Domain) -> anyhow::Result<Runs> {
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut bytes = Vec::new();
    xz2::read::XzDecoder::new(file).read_to_end(&mut bytes)?;
    let mut rest = Reader(&bytes);
    ensure!(rest.take(8)? == MAGIC, "{} is another file", path.display());
    let json_len = rest.number()?;
    rest.take(json_len)?;
    while !rest.0.is_empty() {
        let name_len = rest.number()?;
        let is_wanted = rest.take(name_len)? == domain.name.as_bytes();
        let is_same = rest.take(32)? == domain.hash.as_slice();
        let (n_records, n_losses, n_runs) = (rest.number()?, rest.number()?, rest.number()?);
        let bitmap_len = n_records.div_ceil(8);
        let runs = rest.take(n_runs * (4 + bitmap_len + 4 * n_losses))?;
        if !is_wanted {
            continue;
        }
        ensure!(
            is_same,
            "the fixture is of another setting, base or records"
        );
        let mut runs = Reader(runs);
        let mut found = Runs::new();
        for _ in 0..n_runs {
            let run_number = runs.number()?;
            let number = u32::try_from(run_number)?;
            let run = Run::from_number(number).context("a run of another version")?;
            ensure!(
                runs.take(bitmap_len)? == bitmap(&plan::kept(domain, run.kept)),
                "the fixture was made with other halves"
            );
            let losses = runs.take(4 * n_losses)?.as_chunks::<4>().0.iter();
            found.insert(
                number,
                losses.map(|loss| f32::from_le_bytes(*loss)).collect(),
            );
        }
        return Ok(found);
    }
    anyhow::bail!("{} has no {}", path.display(), domain.name)
}

/// What is left of a file.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> anyhow::Result<&'a [u8]> {
        let (head, tail) = self
            .0
            .split_at_checked(n)
            .context("the fixture is cut short")?;
        self.0 = tail;
        Ok(head)
    }

    fn number(&mut self) -> anyhow::Result<usize> {
        let word = self.take(4)?.try_into()?;
        Ok(usize::try_from(u32::from_le_bytes(word))?)
    }
}

fn bitmap(is_kept: &[bool]) -> Vec<u8> {
    let byte = |bits: &[bool]| {
        let bits = bits.iter().enumerate();
        bits.fold(0, |byte, (at, &bit)| byte | u8::from(bit) << at)
    };
    is_kept.chunks(8).map(byte).collect()
}
