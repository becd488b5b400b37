//! Files of weights in the safetensors format: read tensor by tensor after the whole header was checked, written in
//! one stream.
//!
//! The format: 8 bytes with the header's length (little endian), the header (JSON: name to dtype, shape and offsets),
//! the numbers. Files come from users, so nothing in a header is believed before it is checked, and nothing is
//! allocated for it before.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Longest header read, bytes. A model of 1,000 layers has one of about 2 MB; the format itself allows 100 MB.
const MAX_HEADER_BYTES: u64 = 10 * 1024 * 1024;
/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;
/// Key of the header that is no tensor.
const METADATA: &str = "__metadata__";
/// Most dimensions of a tensor; those of encoders have two.
const MAX_DIMENSIONS: usize = 8;

/// What the header says of one tensor, checked against the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of its numbers.
    pub kind: Kind,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its first byte, from the start of the file.
    offset: u64,
    /// Its bytes.
    length: usize,
}

/// A checked safetensors file.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, TensorInfo>,
}

impl WeightFile {
    /// Opens a file and checks its whole header: length, JSON, names told once, types known, shapes that fit their
    /// bytes, tensors that neither overlap nor leave gaps, nothing beyond the end of the file.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::WeightsTruncated`] and [`Error::WeightsInvalid`].
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::file("read", path))?;
        let size = file.metadata().map_err(Error::file("read", path))?.len();
        let invalid = |tensor: &str, why: String| Error::WeightsInvalid {
            path: path.into(),
            tensor: tensor.into(),
            why,
        };
        let cut = |tensor: &str, need: u64| Error::WeightsTruncated {
            path: path.into(),
            tensor: tensor.into(),
            need,
            have: size,
        };
        if size < LENGTH_BYTES {
            return Err(cut("header", LENGTH_BYTES));
        }
        let mut length = [0u8; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(Error::file("read", path))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES {
            return Err(invalid(
                "header",
                format!(
                    "it says that it is {length} bytes long, and at most {MAX_HEADER_BYTES} are read; fetch the file again (a text of a \
                     few lines in its place is a pointer of Git LFS: `git lfs pull`)"
                ),
            ));
        }
        let start = LENGTH_BYTES + length;
        if size < start {
            return Err(cut("header", start));
        }
        let mut header = vec![0u8; length as usize];
        file.read_exact(&mut header).map_err(Error::file("read", path))?;
        let Header(entries) = serde_json::from_slice(&header)
            .map_err(|e| invalid("header", format!("not the JSON of safetensors: {e}")))?;

        let mut tensors = BTreeMap::new();
        let mut spans = Vec::with_capacity(entries.len());
        for (name, entry) in entries {
            let info = entry.check(start).map_err(|why| invalid(&name, why))?;
            spans.push((info.offset, info.offset + info.length as u64, name.clone()));
            if tensors.insert(name.clone(), info).is_some() {
                return Err(invalid(&name, "named twice in the header".into()));
            }
        }
        spans.sort();
        let mut end = start;
        for (from, to, name) in &spans {
            if *from < end {
                return Err(invalid(
                    name,
                    format!("overlaps the tensor before it: starts at byte {from}, not {end}"),
                ));
            }
            if *from > end {
                return Err(invalid(
                    name,
                    format!("leaves a gap before it: starts at byte {from}, not {end}"),
                ));
            }
            if *to > size {
                return Err(cut(name, *to));
            }
            end = *to;
        }
        if end < size {
            return Err(invalid(
                "header",
                format!("{} bytes after the last tensor belong to none", size - end),
            ));
        }
        Ok(Self {
            path: path.into(),
            file,
            tensors,
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of its tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What the header says of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Reads one tensor as f32 (f16, bf16 and f64 are converted) onto a device.
    ///
    /// # Errors
    /// [`Error::WeightsInvalid`] when there is no such tensor, it holds no floating-point numbers, or one of them is infinite
    /// or not a number (as f32): nothing that is computed with it would be worth anything. [`Error::File`], [`Error::Torch`].
    pub fn read(&self, name: &str, device: Device) -> Result<Tensor> {
        let invalid = |why: String| Error::WeightsInvalid {
            path: self.path.clone(),
            tensor: name.into(),
            why,
        };
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| invalid("not in the file".into()))?;
        if !matches!(info.kind, Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double) {
            return Err(invalid(format!("holds {:?}, wanted F32, F16, BF16 or F64", info.kind)));
        }
        let mut bytes = vec![0u8; info.length];
        self.file
            .read_exact_at(&mut bytes, info.offset)
            .map_err(Error::file("read", &self.path))?;
        let tensor = Tensor::f_from_data_size(&bytes, &info.shape, info.kind)?.f_to_kind(Kind::Float)?;
        if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(invalid(
                "holds numbers that are infinite or not numbers; take the weights from a sound copy of the model"
                    .into(),
            ));
        }
        Ok(tensor.f_to_device(device)?)
    }
}

/// One entry of the header as it stands there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Entry {
    /// `start`: the first byte after the header.
    fn check(self, start: u64) -> Result<TensorInfo, String> {
        let (kind, width) = kind_of(&self.dtype).ok_or_else(|| format!("dtype {} is not known", self.dtype))?;
        if self.shape.len() > MAX_DIMENSIONS {
            return Err(format!("{} dimensions, at most {MAX_DIMENSIONS}", self.shape.len()));
        }
        let bytes = self
            .shape
            .iter()
            .try_fold(width, |n, side| n.checked_mul(*side))
            .ok_or_else(|| format!("shape {:?} overflows", self.shape))?;
        let (from, to) = self.data_offsets;
        if to.checked_sub(from) != Some(bytes) {
            return Err(format!(
                "offsets {from}..{to} do not hold the {bytes} bytes of {} {:?}",
                self.dtype, self.shape
            ));
        }
        let offset = start.checked_add(from).ok_or("its offset overflows")?;
        offset.checked_add(bytes).ok_or("its end overflows")?;
        let shape = self
            .shape
            .iter()
            .map(|side| i64::try_from(*side))
            .collect::<Result<_, _>>();
        Ok(TensorInfo {
            kind,
            shape: shape.map_err(|_| "its shape overflows")?,
            offset,
            length: usize::try_from(bytes).map_err(|_| "it is larger than memory")?,
        })
    }
}

/// All entries in the order of the file, repeated names included (a map would hide them).
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        map.next_value::<BTreeMap<String, String>>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// libtorch's type and the bytes of one number.
fn kind_of(dtype: &str) -> Option<(Kind, u64)> {
    Some(match dtype {
        "F64" => (Kind::Double, 8),
        "F32" => (Kind::Float, 4),
        "F16" => (Kind::Half, 2),
        "BF16" => (Kind::BFloat16, 2),
        "I64" => (Kind::Int64, 8),
        "I32" => (Kind::Int, 4),
        "I16" => (Kind::Int16, 2),
        "I8" => (Kind::Int8, 1),
        "U8" => (Kind::Uint8, 1),
        "BOOL" => (Kind::Bool, 1),
        _ => return None,
    })
}

/// Writes f32 tensors as a safetensors file, sorted by name. One tensor at a time is held in memory beside the model.
/// The file is marked as PyTorch's, which `transformers` asks for. It is not forced onto the disk: what is to last is
/// sent to the storage, which does that, and is read back from there.
///
/// # Errors
/// [`Error::File`], [`Error::Torch`].
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    /// Bytes of an f32.
    const WIDTH: usize = 4;
    let mut header = serde_json::Map::new();
    header.insert(METADATA.into(), serde_json::json!({"format": "pt"}));
    let mut end = 0;
    for (name, tensor) in tensors {
        let from = end;
        end += tensor.numel() * WIDTH;
        let entry = serde_json::json!({"dtype": "F32", "shape": tensor.size(), "data_offsets": [from, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // Numbers begin at a multiple of 8 bytes, so that readers can map the file.
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');

    let io = || Error::file("write", path);
    let mut out = BufWriter::new(File::create(path).map_err(io())?);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io())?;
    out.write_all(&header).map_err(io())?;
    for tensor in tensors.values() {
        let tensor = tensor
            .f_detach()?
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Float)?
            .f_contiguous()?;
        let mut bytes = vec![0u8; tensor.numel() * WIDTH];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        out.write_all(&bytes).map_err(io())?;
    }
    out.flush().map_err(io())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn what_is_written_reads_back_and_opens_in_the_reference_crate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut tensors = BTreeMap::new();
        tensors.insert(
            "b".to_string(),
            Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([2, 2]),
        );
        tensors.insert("a".to_string(), Tensor::from_slice(&[0.5f32]).set_requires_grad(true));
        // Not contiguous: the numbers must come out in the order of the shape.
        tensors.insert(
            "t".to_string(),
            Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).view([2, 3]).tr(),
        );
        write(&path, &tensors).unwrap();

        let back = WeightFile::open(&path).unwrap();
        assert_eq!(back.names().collect::<Vec<_>>(), ["a", "b", "t"]);
        for (name, tensor) in &tensors {
            let read = back.read(name, Device::Cpu).unwrap();
            assert_eq!(read, tensor.detach(), "{name}");
        }
        let bytes = std::fs::read(&path).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(reference.tensor("t").unwrap().shape(), [3, 2]);
        let numbers: Vec<f32> = reference
            .tensor("t")
            .unwrap()
            .data()
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(numbers, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    fn half_precision_becomes_f32() {
        let header = r#"{"h":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#;
        let (_dir, path) = file(header, 0);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(&[0x80, 0x3f, 0x00, 0xc0]);
        std::fs::write(&path, bytes).unwrap();
        let read = WeightFile::open(&path).unwrap().read("h", Device::Cpu).unwrap();
        assert_eq!(Vec::<f32>::try_from(&read).unwrap(), [1.0, -2.0]);
    }

    #[test]
    fn lying_headers_are_refused_with_the_tensors_name() {
        let cases = [
            (
                r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
                4,
                "w: offsets 0..4 do not hold the 8 bytes",
            ),
            (
                r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
                4,
                "w: offsets 4..0",
            ),
            (
                r#"{"w":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}}"#,
                4,
                "w: dtype F9",
            ),
            (
                r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#,
                4,
                "overflows",
            ),
            (
                r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
                "w: leaves a gap",
            ),
            (
                r#"{"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
                "w: overlaps",
            ),
            (
                r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
                "w: named twice",
            ),
            (
                r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                9,
                "5 bytes after the last tensor",
            ),
            (r#"{"w":{"dtype":"F32"}}"#, 4, "header: not the JSON"),
            (r#"[1,2]"#, 0, "header: not the JSON"),
        ];
        for (header, data, want) in cases {
            let (_dir, path) = file(header, data);
            let error = WeightFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(want), "{header}: {error}");
        }
    }

    #[test]
    fn a_cut_file_names_the_first_tensor_that_is_cut() {
        let header = r#"{"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        let (_dir, path) = file(header, 7);
        let error = WeightFile::open(&path).unwrap_err();
        assert!(
            matches!(&error, Error::WeightsTruncated { tensor, .. } if tensor == "w"),
            "{error}"
        );
        for keep in [3, 20] {
            let bytes = std::fs::read(&path).unwrap();
            let (dir, _) = file("", 0);
            let path = dir.path().join("cut.safetensors");
            std::fs::write(&path, &bytes[..keep]).unwrap();
            let error = WeightFile::open(&path).unwrap_err();
            assert!(
                matches!(&error, Error::WeightsTruncated { tensor, .. } if tensor == "header"),
                "{error}"
            );
        }
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        for value in [f32::NAN, f32::INFINITY] {
            let (_dir, path) = file(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 0);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.extend([1.0_f32, value].iter().flat_map(|n| n.to_le_bytes()));
            std::fs::write(&path, bytes).unwrap();
            let error = WeightFile::open(&path).unwrap().read("w", Device::Cpu).unwrap_err();
            assert!(
                error.to_string().contains("w: holds numbers that are infinite"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_header_that_claims_gigabytes_is_not_allocated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
        let error = WeightFile::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("18446744073709551615 bytes long") && error.contains("git lfs pull"),
            "{error}"
        );
    }
}
