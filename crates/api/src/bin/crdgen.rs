//! Writes the CRDs into a folder, or with `--check` says which files differ.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (first, second) = (args.next(), args.next());
    let (check, folder) = match (first.as_deref(), second) {
        (Some("--check"), Some(folder)) => (true, folder),
        (Some(folder), None) if !folder.starts_with('-') => (false, folder.to_owned()),
        _ => {
            eprintln!(
                "usage: crdgen [--check] FOLDER\n  writes the CRDs of flywheel.dev into FOLDER; --check only compares, and fails where a file differs"
            );
            return ExitCode::from(2);
        }
    };
    match run(check, &PathBuf::from(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crdgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(check: bool, folder: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    for (file, crd) in flywheel_api::crds()? {
        let (path, text) = (folder.join(file), flywheel_api::to_yaml(&crd)?);
        if check {
            if std::fs::read_to_string(&path).unwrap_or_default() != text {
                return Err(format!(
                    "{} is not what crates/api says; run `make crds` and commit the change",
                    path.display()
                )
                .into());
            }
        } else {
            std::fs::write(&path, text)?;
        }
    }
    Ok(())
}
