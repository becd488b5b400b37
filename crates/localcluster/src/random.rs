//! Random names and passwords, from the system.

use std::fs::File;
use std::io::Read;

use crate::error::{Error, Result};

pub(crate) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let source = "/dev/urandom";
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::io(format!("reading {source}")))?;
    Ok(bytes)
}

/// `digits` hexadecimal digits, at most 32.
pub(crate) fn hex(digits: usize) -> Result<String> {
    let mut text = hex::encode(bytes::<16>()?);
    text.truncate(digits);
    Ok(text)
}
