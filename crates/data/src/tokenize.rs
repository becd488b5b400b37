//! Texts to token ids.

use std::path::{Path, PathBuf};

use flywheel_contract::artifact::{TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};
use serde_json::{Value, json};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Encoding, Tokenizer, TruncationParams};

use crate::encoded::EncodedSet;
use crate::error::{DataError, Result};
use crate::prepare::TextSet;

/// Name of BERT's vocabulary file: one token per line, its id the line's number from 0.
pub const VOCABULARY_FILE: &str = "vocab.txt";
/// Texts encoded at once, so that the library's intermediate results stay small.
const CHUNK: usize = 4096;

/// A text as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedText {
    /// Token ids, special tokens included, at most the maximal length.
    pub ids: Vec<i64>,
    /// Whether tokens were cut off.
    pub truncated: bool,
}

/// A tokenizer bound to a model's vocabulary size and a maximal length. Neither truncation nor padding settings of its
/// file are used: texts are cut at the maximal length and never padded.
pub struct TextTokenizer {
    inner: Tokenizer,
    vocabulary_size: i64,
    /// Highest id and one.
    tokens: usize,
    config: Value,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer")
            .field("vocabulary_size", &self.vocabulary_size)
            .finish_non_exhaustive()
    }
}

fn invalid(message: impl Into<String>) -> DataError {
    DataError::TokenizerInvalid {
        message: message.into(),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataError::Io {
            action: "read",
            path: path.display().to_string(),
            source,
        }),
    }
}

impl TextTokenizer {
    /// Loads `tokenizer.json`, or else `vocab.txt` as BERT's WordPiece (lower-casing as `tokenizer_config.json` says,
    /// on by default), from a folder. `max_length` counts special tokens; `vocabulary_size` is the model's number of
    /// embeddings.
    ///
    /// # Errors
    /// [`DataError::TokenizerMissing`], [`DataError::TokenizerInvalid`], [`DataError::Io`].
    pub fn load(folder: &Path, max_length: usize, vocabulary_size: usize) -> Result<Self> {
        let config = match read(&folder.join(TOKENIZER_CONFIG_FILE))? {
            Some(bytes) => serde_json::from_slice::<Value>(&bytes)
                .ok()
                .filter(Value::is_object)
                .ok_or_else(|| {
                    invalid("tokenizer_config.json of the pretrained folder is no JSON object; export it again")
                })?,
            None => json!({}),
        };
        let mut inner = if let Some(bytes) = read(&folder.join(TOKENIZER_FILE))? {
            Tokenizer::from_bytes(bytes)
                .map_err(|e| invalid(format!("tokenizer.json cannot be read: {e}. Export it again")))?
        } else if let Some(bytes) = read(&folder.join(VOCABULARY_FILE))? {
            word_piece(&bytes, &config)?
        } else {
            return Err(DataError::TokenizerMissing);
        };
        let added = inner
            .get_post_processor()
            .map_or(0, |p| tokenizers::PostProcessor::added_tokens(p, false));
        if max_length <= added {
            return Err(invalid(format!(
                "maxLength {max_length} leaves no room beside {added} special tokens; raise it"
            )));
        }
        inner
            .with_padding(None)
            .with_truncation(Some(TruncationParams {
                max_length,
                ..TruncationParams::default()
            }))
            .map_err(|e| invalid(format!("the tokenizer cannot cut texts at {max_length} tokens: {e}")))?;
        let highest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if highest as usize >= vocabulary_size {
            return Err(invalid(format!(
                "the tokenizer has token ids up to {highest}, but the model has only {vocabulary_size} embeddings (vocab_size of \
                 config.json); take the tokenizer that the model was trained with"
            )));
        }
        let mut config = config;
        if let Some(object) = config.as_object_mut() {
            object.insert("model_max_length".to_owned(), json!(max_length));
            object
                .entry("tokenizer_class")
                .or_insert_with(|| json!("PreTrainedTokenizerFast"));
            for (key, names) in SPECIAL_TOKENS {
                if object.contains_key(*key) {
                    continue;
                }
                if let Some(name) = names.iter().find(|n| inner.token_to_id(n).is_some()) {
                    object.insert((*key).to_owned(), json!(name));
                }
            }
        }
        Ok(Self {
            inner,
            vocabulary_size: i64::try_from(vocabulary_size).unwrap_or(i64::MAX),
            tokens: highest as usize + 1,
            config,
        })
    }

    /// Highest token id and one: as many embeddings a model needs at least.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn ids(&self, encoding: &Encoding) -> Result<EncodedText> {
        let ids: Vec<i64> = encoding.get_ids().iter().map(|id| i64::from(*id)).collect();
        if let Some(id) = ids.iter().find(|id| **id >= self.vocabulary_size) {
            return Err(invalid(format!(
                "the tokenizer gave token id {id}, but the model has only {} embeddings; take the tokenizer that the model \
                 was trained with",
                self.vocabulary_size
            )));
        }
        if ids.is_empty() {
            return Err(invalid(
                "the tokenizer gives no token at all for a text; it needs a post-processor that adds special tokens such as [CLS]",
            ));
        }
        Ok(EncodedText {
            ids,
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }

    /// Encodes one text, which is expected cleaned ([`crate::clean_text`]).
    ///
    /// # Errors
    /// [`DataError::TokenizerInvalid`].
    pub fn encode(&self, text: &str) -> Result<EncodedText> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|e| invalid(format!("the tokenizer failed: {e}")))?;
        self.ids(&encoding)
    }

    /// Encodes a set; also tells how many texts were cut.
    ///
    /// # Errors
    /// [`DataError::TokenizerInvalid`].
    pub fn encode_set(&self, set: &TextSet) -> Result<(EncodedSet, u64)> {
        let mut out = EncodedSet {
            ids: Vec::with_capacity(set.len()),
            labels: set.labels.clone(),
        };
        let mut truncated = 0;
        for chunk in set.texts.chunks(CHUNK) {
            let texts: Vec<&str> = chunk.iter().map(String::as_str).collect();
            let encodings = self
                .inner
                .encode_batch_fast(texts, true)
                .map_err(|e| invalid(format!("the tokenizer failed: {e}")))?;
            for encoding in &encodings {
                let text = self.ids(encoding)?;
                truncated += u64::from(text.truncated);
                out.ids.push(text.ids);
            }
        }
        Ok((out, truncated))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into a folder; what is loaded from them encodes alike.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::TokenizerInvalid`].
    pub fn save(&self, folder: &Path) -> Result<[PathBuf; 2]> {
        let tokenizer = self
            .inner
            .to_string(false)
            .map_err(|e| invalid(format!("the tokenizer cannot be written: {e}")))?;
        let files = [
            (folder.join(TOKENIZER_FILE), tokenizer),
            (folder.join(TOKENIZER_CONFIG_FILE), format!("{:#}\n", self.config)),
        ];
        for (path, content) in &files {
            std::fs::write(path, content).map_err(|source| DataError::Io {
                action: "write",
                path: path.display().to_string(),
                source,
            })?;
        }
        Ok(files.map(|(path, _)| path))
    }
}

/// Keys of `tokenizer_config.json` and the tokens that play the part, BERT's before RoBERTa's.
const SPECIAL_TOKENS: &[(&str, &[&str])] = &[
    ("cls_token", &["[CLS]", "<s>"]),
    ("sep_token", &["[SEP]", "</s>"]),
    ("pad_token", &["[PAD]", "<pad>"]),
    ("unk_token", &["[UNK]", "<unk>"]),
    ("mask_token", &["[MASK]", "<mask>"]),
];

/// BERT's tokenizer over a vocabulary, with the settings of `BertTokenizer` in Hugging Face's library.
fn word_piece(vocabulary: &[u8], config: &Value) -> Result<Tokenizer> {
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let map = WordPiece::read_bytes(vocabulary).map_err(|e| invalid(format!("vocab.txt cannot be read: {e}")))?;
    let id = |token: &str| {
        map.get(token).copied().ok_or_else(|| {
            invalid(format!(
                "vocab.txt does not hold {token}; take the whole vocabulary of the model, one token per line"
            ))
        })
    };
    let (cls, sep) = (id("[CLS]")?, id("[SEP]")?);
    id("[UNK]")?;
    let special: Vec<AddedToken> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .iter()
        .filter(|t| map.contains_key(**t))
        .map(|t| AddedToken::from(*t, true))
        .collect();
    let model = WordPiece::builder()
        .vocab(map)
        .build()
        .map_err(|e| invalid(format!("vocab.txt cannot be used: {e}")))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(BertNormalizer::new(
            true,
            flag("tokenize_chinese_chars").unwrap_or(true),
            flag("strip_accents"),
            flag("do_lower_case").unwrap_or(true),
        )))
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(Some(BertProcessing::new(
            ("[SEP]".to_owned(), sep),
            ("[CLS]".to_owned(), cls),
        )))
        .with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
    tokenizer.add_special_tokens(&special);
    Ok(tokenizer)
}
