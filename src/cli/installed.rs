//! The example program and its data, carried in the binary, so that `quickstart` and `standalone` work from any directory.

use anyhow::Context;
use std::path::Path;

/// Name of the example program.
pub(super) const PROGRAM: &str = "digits_fedavg";

const FILES: [(&str, &str); 2] = [
    ("program.toml", include_str!("../../examples/programs/digits_fedavg/program.toml")),
    ("fedavg.py", include_str!("../../examples/programs/digits_fedavg/fedavg.py")),
];
/// UCI optical digits, 1,797 rows; source and licence in `examples/programs/digits_fedavg/data/SOURCE.md`.
const DIGITS: &str = include_str!("../../examples/programs/digits_fedavg/data/digits.csv");

/// Give party `index` of `parties` the program, and its own rows of the data: row `i` belongs to party `i mod parties`.
///
/// # Errors
/// A file cannot be written.
pub(super) fn install(party_dir: &Path, index: usize, parties: usize) -> anyhow::Result<()> {
    let (program, data) = (party_dir.join("programs").join(PROGRAM), party_dir.join("data"));
    for dir in [&program, &data] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let rows: String = DIGITS.lines().skip(index).step_by(parties).flat_map(|row| [row, "\n"]).collect();
    for (path, content) in FILES
        .map(|(name, content)| (program.join(name), content))
        .into_iter()
        .chain([(data.join("digits.csv"), rows.as_str())])
    {
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
