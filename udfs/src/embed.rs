//! Sentence embeddings by a BERT model from a folder that the user names.
//!
//! The folder holds what sentence-transformers saves: `config.json`, `tokenizer.json` and
//! `model.safetensors` (all-MiniLM-L6-v2, the BGE and E5 families and the like). Weights are not
//! shipped. A text's embedding is the mean of its tokens' last hidden states, scaled to length 1.
//!
//! A text has the same embedding, to the bit, whatever batch it comes in (on one machine): stored
//! outputs and sampled re-execution depend on that. So texts are run together only with texts of
//! exactly as many tokens, never padded, and only if the model is large enough ([`BATCHED_MIN`]).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, ListArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use datafusion::common::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};
use tokenizers::{Tokenizer, TruncationParams};

use crate::card::{Card, CostClass};
use crate::error::FunctionError;
use crate::native::{Arguments, Native, text};

/// Tokens that run through the model at once: 50 MB of attention at 12 heads and 512 tokens a text.
const TOKENS_PER_RUN_MAX: usize = 2_048;
/// Hidden and intermediate size, in numbers, from which texts are run together. Below, candle's matrix product may take
/// another kernel, with other rounding, for one text than for many (when the product has at most 256
/// numbers, or 64 x 64): such models are fast enough one text at a time.
const BATCHED_MIN: usize = 256;
/// Tokens a model must take at least: the two that mark beginning and end, and some text.
const POSITIONS_MIN: usize = 4;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";

/// A sentence-embedding model, opened.
pub struct Embedding {
    tokenizer: Tokenizer,
    model: BertModel,
    dimensions: usize,
    is_batched: bool,
    content: String,
}

impl Embedding {
    /// Opens the model in `folder` as the SQL function `name(text) -> list of Float32`.
    ///
    /// The card's version is the BLAKE3 hash of the three files: another model is another version.
    ///
    /// # Errors
    /// [`FunctionError::ModelFile`] names the file that is missing; [`FunctionError::Model`] the file
    /// that is not usable and why: broken JSON, a model that is not BERT, a tensor that is missing or
    /// has another shape than the configuration says, more tokens than the model knows.
    ///
    /// # Cost
    /// Reads the weights into memory (90 MB for MiniLM) and runs the model once.
    pub fn open(folder: &Path, name: &str) -> Result<(Card, ScalarUDF), FunctionError> {
        let embedding = Self::load(folder)?;
        let card = Card::immutable(
            name,
            &embedding.content,
            CostClass::Costly,
            format!(
                "The embedding of a text: {} numbers of which the squares sum to 1. Texts longer than \
                 the model takes are cut.",
                embedding.dimensions
            ),
            format!("SELECT {name}('a sentence')"),
        );
        let signature = Signature::coercible(vec![text()], Volatility::Immutable);
        let returns = DataType::new_list(DataType::Float32, true);
        let answer = move |arguments: &Arguments<'_>| embedding.answer(arguments);
        Ok(Native::new(card, signature, returns, answer)
            .with_argument("text", "a sentence or a paragraph")
            .into_udf())
    }

    fn load(folder: &Path) -> Result<Self, FunctionError> {
        let (config_bytes, config_file) = read(folder, CONFIG)?;
        let (tokenizer_bytes, tokenizer_file) = read(folder, TOKENIZER)?;
        let (weights, weights_file) = read(folder, WEIGHTS)?;
        let content = content_hash([&config_bytes, &tokenizer_bytes, &weights]);
        let config = parse_config(&config_bytes, &config_file)?;
        let tokenizer = parse_tokenizer(&tokenizer_bytes, &tokenizer_file, &config)?;
        let unusable = |error: candle_core::Error| FunctionError::Model {
            file: weights_file.clone(),
            reason: first_line(&error.to_string()),
        };
        let tensors = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu);
        let model = BertModel::load(tensors.map_err(unusable)?, &config).map_err(unusable)?;
        let dimensions = config.hidden_size;
        let is_batched = dimensions.min(config.intermediate_size) >= BATCHED_MIN;
        let embedding = Self { tokenizer, model, dimensions, is_batched, content };
        embedding.try_once(&weights_file)?;
        Ok(embedding)
    }

    /// A model that cannot run, or whose weights are not numbers, is refused here and not in a query.
    fn try_once(&self, weights_file: &Path) -> Result<(), FunctionError> {
        let unusable = |reason| FunctionError::Model { file: weights_file.to_owned(), reason };
        let vectors = self.embed(&["a trial"]).map_err(unusable)?;
        match vectors.iter().all(|vector| vector.iter().all(|number| number.is_finite())) {
            true => Ok(()),
            false => Err(unusable("the model gives NaN or infinity for \"a trial\"".to_owned())),
        }
    }

    /// Each different text of a batch is embedded once.
    fn answer(&self, arguments: &Arguments<'_>) -> DataFusionResult<ArrayRef> {
        let texts = arguments.texts(0)?;
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut different: Vec<&str> = Vec::new();
        let rows: Vec<Option<usize>> = (0..arguments.rows)
            .map(|row| {
                let text = texts.get(row)?;
                Some(*numbers.entry(text).or_insert_with(|| {
                    different.push(text);
                    different.len() - 1
                }))
            })
            .collect();
        let vectors = self.embed(&different).map_err(|reason| {
            DataFusionError::Execution(format!("{}: {reason}", arguments.function))
        })?;
        let lengths = rows.iter().map(|row| if row.is_some() { self.dimensions } else { 0 });
        let offsets = OffsetBuffer::<i32>::from_lengths(lengths);
        let nulls = NullBuffer::from_iter(rows.iter().map(Option::is_some));
        let known = rows.iter().flatten().filter_map(|text| vectors.get(*text));
        let values: Vec<f32> = known.flatten().copied().collect();
        let item = Arc::new(Field::new_list_field(DataType::Float32, true));
        let values = Arc::new(Float32Array::from(values));
        Ok(Arc::new(ListArray::try_new(item, offsets, values, Some(nulls))?))
    }

    /// One vector for each text.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
        let mut by_length: BTreeMap<usize, Vec<(usize, Vec<u32>)>> = BTreeMap::new();
        for (position, text) in texts.iter().enumerate() {
            let encoding = self.tokenizer.encode_fast(*text, true).map_err(|e| e.to_string())?;
            let tokens = encoding.get_ids().to_vec();
            by_length.entry(tokens.len()).or_default().push((position, tokens));
        }
        let mut vectors = vec![Vec::new(); texts.len()];
        for (length, group) in by_length {
            if length == 0 {
                return Err("the tokenizer gives no token for a text".to_owned());
            }
            for run in group.chunks(self.texts_per_run(length)) {
                let embedded =
                    self.run(run, length).map_err(|error| first_line(&error.to_string()))?;
                for ((position, _), vector) in run.iter().zip(embedded) {
                    vectors[*position] = vector;
                }
            }
        }
        Ok(vectors)
    }

    /// How many texts of `length` tokens are run together.
    fn texts_per_run(&self, length: usize) -> usize {
        if !self.is_batched || length < 2 {
            return 1;
        }
        (TOKENS_PER_RUN_MAX / length).max(1)
    }

    /// Runs texts of `length` tokens each.
    fn run(
        &self,
        texts: &[(usize, Vec<u32>)],
        length: usize,
    ) -> candle_core::Result<Vec<Vec<f32>>> {
        let tokens: Vec<u32> =
            texts.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        let tokens = Tensor::from_vec(tokens, (texts.len(), length), &Device::Cpu)?;
        let hidden = self.model.forward(&tokens, &tokens.zeros_like()?, None)?;
        let mean = hidden.mean(1)?;
        let norm = mean.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
        mean.broadcast_div(&norm)?.to_vec2::<f32>()
    }
}

fn read(folder: &Path, name: &str) -> Result<(Vec<u8>, PathBuf), FunctionError> {
    let file = folder.join(name);
    match std::fs::read(&file) {
        Ok(bytes) => Ok((bytes, file)),
        Err(error) => Err(FunctionError::ModelFile { file, reason: error.to_string() }),
    }
}

fn content_hash(files: [&[u8]; 3]) -> String {
    let mut hasher = blake3::Hasher::new();
    for bytes in files {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    format!("blake3-{}", &hasher.finalize().to_hex()[..32])
}

fn parse_config(bytes: &[u8], file: &Path) -> Result<Config, FunctionError> {
    let unusable = |reason| FunctionError::Model { file: file.to_owned(), reason };
    let config: Config =
        serde_json::from_slice(bytes).map_err(|error| unusable(error.to_string()))?;
    if let Some(other) = config.model_type.as_deref().filter(|model_type| *model_type != "bert") {
        return Err(unusable(format!("model_type is {other}; it must be bert")));
    }
    let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
    if hidden == 0 || heads == 0 || hidden % heads != 0 {
        let reason = format!(
            "hidden_size is {hidden} and num_attention_heads is {heads}; the first must be a multiple \
             of the second"
        );
        return Err(unusable(reason));
    }
    if config.max_position_embeddings < POSITIONS_MIN {
        let positions = config.max_position_embeddings;
        let reason =
            format!("max_position_embeddings is {positions}; it must be at least {POSITIONS_MIN}");
        return Err(unusable(reason));
    }
    Ok(config)
}

/// The tokenizer, without padding, cutting texts at what the model takes.
fn parse_tokenizer(bytes: &[u8], file: &Path, config: &Config) -> Result<Tokenizer, FunctionError> {
    let unusable = |reason| FunctionError::Model { file: file.to_owned(), reason };
    let mut tokenizer =
        Tokenizer::from_bytes(bytes).map_err(|error| unusable(first_line(&error.to_string())))?;
    let highest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize;
    if highest >= config.vocab_size {
        let known = config.vocab_size;
        let reason = format!("token {highest} is beyond the model's vocab_size, which is {known}");
        return Err(unusable(reason));
    }
    let own = tokenizer.get_truncation().map_or(usize::MAX, |truncation| truncation.max_length);
    let max_length = own.max(POSITIONS_MIN).min(config.max_position_embeddings);
    let truncation = TruncationParams { max_length, ..TruncationParams::default() };
    let cut = tokenizer.with_padding(None).with_truncation(Some(truncation));
    cut.map_err(|error| unusable(first_line(&error.to_string())))?;
    Ok(tokenizer)
}

/// Errors of candle and tokenizers bring backtraces of many lines.
fn first_line(error: &str) -> String {
    error.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
