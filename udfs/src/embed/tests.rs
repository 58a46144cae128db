//! What embeddings promise: the same text has the same vector, and a broken folder is named.

use std::collections::HashMap;
use std::fs;

use arrow::array::AsArray;
use arrow::datatypes::Float32Type;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::trial::{Trial, nulls, texts};
use crate::{Functions, registered};

const WORDS: [&str; 12] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "dog", "the", "sat", "##s", "a", "trial", "é"];
const HIDDEN: usize = 16;

fn config(hidden: usize) -> Value {
    json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": hidden,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 2 * hidden,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "max_position_embeddings": 12,
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
        "pad_token_id": 0, "position_embedding_type": "absolute"
    })
}

fn tokenizer() -> Value {
    let vocabulary: HashMap<&str, usize> =
        WORDS.iter().enumerate().map(|(id, word)| (*word, id)).collect();
    let special = |id: usize| {
        json!({
            "id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    };
    let token = |id: usize| json!({"SpecialToken": {"id": WORDS[id], "type_id": 0}});
    let entry = |id: usize| json!({"id": WORDS[id], "ids": [id], "tokens": [WORDS[id]]});
    json!({
        "version": "1.0",
        // As MiniLM's own file has them: the function must not pad, and must cut at the shorter bound.
        "truncation": {"max_length": 10, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 10}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": false, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [token(2), {"Sequence": {"id": "A", "type_id": 0}}, token(3)],
            "pair": [token(2), {"Sequence": {"id": "A", "type_id": 0}}, token(3),
                {"Sequence": {"id": "B", "type_id": 0}}, token(3)],
            "special_tokens": {"[CLS]": entry(2), "[SEP]": entry(3)}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary}
    })
}

/// Random weights by a fixed generator: candle's own is not seeded on the CPU.
fn weights(hidden: usize, scale: f32) -> HashMap<String, Tensor> {
    let mut state = 7_u64;
    let mut number = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * scale
    };
    let (words, inner) = (WORDS.len(), 2 * hidden);
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut put = |name: &str, shape: &[usize]| shapes.push((name.to_owned(), shape.to_vec()));
    put("embeddings.word_embeddings.weight", &[words, hidden]);
    put("embeddings.position_embeddings.weight", &[12, hidden]);
    put("embeddings.token_type_embeddings.weight", &[2, hidden]);
    let layer = "encoder.layer.0";
    for (part, rows, columns) in [
        ("attention.self.query", hidden, hidden),
        ("attention.self.key", hidden, hidden),
        ("attention.self.value", hidden, hidden),
        ("attention.output.dense", hidden, hidden),
        ("intermediate.dense", inner, hidden),
        ("output.dense", hidden, inner),
    ] {
        put(&format!("{layer}.{part}.weight"), &[rows, columns]);
        put(&format!("{layer}.{part}.bias"), &[rows]);
    }
    let norms = ["attention.output.LayerNorm", "output.LayerNorm"].map(|n| format!("{layer}.{n}"));
    for norm in norms.iter().map(String::as_str).chain(["embeddings.LayerNorm"]) {
        put(&format!("{norm}.weight"), &[hidden]);
        put(&format!("{norm}.bias"), &[hidden]);
    }
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| number()).collect();
        (name, Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap())
    };
    shapes.into_iter().map(tensor).collect()
}

fn folder() -> TempDir {
    folder_of(HIDDEN)
}

fn folder_of(hidden: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG), config(hidden).to_string()).unwrap();
    fs::write(folder.path().join(TOKENIZER), tokenizer().to_string()).unwrap();
    save(&folder, &weights(hidden, 1.0));
    folder
}

fn save(folder: &TempDir, weights: &HashMap<String, Tensor>) {
    candle_core::safetensors::save(weights, folder.path().join(WEIGHTS)).unwrap();
}

fn trial() -> Trial {
    Trial::of(Embedding::open(folder().path(), "embed").unwrap())
}

fn vectors(trial: &Trial, of: &[&str]) -> Vec<Vec<f32>> {
    let rows = trial.rows(&[texts(of.iter().copied())]).0;
    let lists = rows.as_list::<i32>();
    let vector = |list: ArrayRef| list.as_primitive::<Float32Type>().values().to_vec();
    lists.iter().map(|list| vector(list.unwrap())).collect()
}

fn refusal(folder: &TempDir) -> FunctionError {
    Embedding::open(folder.path(), "embed").map(|(card, _)| card).unwrap_err()
}

#[test]
fn an_embedding_has_length_one_and_the_models_dimensions() {
    for vector in vectors(&trial(), &["the cat sat", "", "dogs", "Zürich 🙂", "é"]) {
        assert_eq!(vector.len(), HIDDEN);
        let square: f32 = vector.iter().map(|number| number * number).sum();
        assert!((square - 1.0).abs() < 1e-5, "{square}");
    }
}

#[test]
fn the_same_text_has_the_same_embedding_to_the_bit_in_every_batch() {
    let many = ["the cat sat", "dog", "the dog sat", "", "dog", "a cat sat", "cats", "the cat sat"];
    for hidden in [HIDDEN, BATCHED_MIN] {
        let model = folder_of(hidden);
        let trial = Trial::of(Embedding::open(model.path(), "embed").unwrap());
        let together = vectors(&trial, &many);
        for (text, vector) in many.iter().zip(&together) {
            assert_eq!(&vectors(&trial, &[text])[0], vector, "{text} of {hidden}");
        }
        assert_eq!(together[0], together[7]);
        assert_ne!(together[0], together[2]);
        // Different texts of five tokens, more than one run takes.
        let words = ["cat", "dog", "the", "sat", "a", "trial", "é", "[UNK]"];
        let crowd: Vec<String> = (0..512)
            .map(|number| [number % 8, number / 8 % 8, number / 64].map(|w| words[w]).join(" "))
            .collect();
        let crowd: Vec<&str> = crowd.iter().map(String::as_str).collect();
        let together = vectors(&trial, &crowd);
        for number in [0, 1, 99, 408, 410, 511] {
            assert_eq!(
                vectors(&trial, &[crowd[number]])[0],
                together[number],
                "{number} of {hidden}"
            );
        }
    }
}

#[test]
fn a_long_text_is_cut_at_the_shorter_bound() {
    let trial = trial();
    let eight = ["cat"; 8].join(" ");
    let long = ["cat"; 5_000].join(" ");
    let seven = ["cat"; 7].join(" ");
    let vectors = vectors(&trial, &[&eight, &long, &seven]);
    assert_eq!(vectors[0], vectors[1]);
    assert_ne!(vectors[0], vectors[2]);
}

#[test]
fn embeddings_keep_the_rules_of_the_library() {
    let trial = trial();
    trial.keeps_the_rules_of_the_library(&[texts(["the cat sat", "", "é", "dog"])]);
    assert_eq!(trial.rows(&[nulls(3)]).null_count(), 3);
    assert!(trial.refuses(&[DataType::Int64]).contains("embed"));
}

#[test]
fn the_version_is_that_of_the_files() {
    let folder = folder();
    let open = || Embedding::open(folder.path(), "embed").unwrap();
    let first = open().0.version;
    assert_eq!(open().0.version, first);
    save(&folder, &weights(HIDDEN, 0.9));
    let (card, udf) = open();
    assert_ne!(card.version, first);
    assert!(card.version.starts_with("blake3-"));
    let functions = Functions::new();
    let version = functions.register(card, udf).unwrap();
    let udf = functions.get("embed").unwrap();
    assert_eq!(registered(&udf).map(|function| function.version()), Some(version));
}

#[test]
fn a_missing_file_is_named() {
    for name in [CONFIG, TOKENIZER, WEIGHTS] {
        let folder = folder();
        fs::remove_file(folder.path().join(name)).unwrap();
        let error = refusal(&folder);
        assert_eq!(error.code(), "FS-FN-10");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_file_of_something_else_is_named_with_what_is_wrong() {
    for name in [CONFIG, TOKENIZER, WEIGHTS] {
        let folder = folder();
        fs::write(folder.path().join(name), "<html>").unwrap();
        let error = refusal(&folder);
        assert_eq!(error.code(), "FS-FN-11");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
}

#[test]
fn a_truncated_weights_file_is_refused() {
    let folder = folder();
    let file = folder.path().join(WEIGHTS);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(refusal(&folder).code(), "FS-FN-11");
}

#[test]
fn a_tensor_that_is_missing_or_of_another_shape_is_named() {
    let folder = folder();
    let name = "encoder.layer.0.intermediate.dense.weight";
    let mut fewer = weights(HIDDEN, 1.0);
    fewer.remove(name);
    save(&folder, &fewer);
    assert!(refusal(&folder).to_string().contains(name));
    let mut other = weights(HIDDEN, 1.0);
    let shape = Tensor::zeros((3, HIDDEN), DType::F32, &Device::Cpu).unwrap();
    other.insert(name.to_owned(), shape);
    save(&folder, &other);
    let error = refusal(&folder).to_string();
    assert!(error.contains("[3, 16]") && error.contains("[32, 16]"), "{error}");
}

#[test]
fn a_configuration_that_makes_no_model_is_refused_with_the_bound() {
    for (key, value, expected) in [
        ("model_type", json!("roberta"), "model_type is roberta; it must be bert"),
        ("num_attention_heads", json!(3), "hidden_size is 16 and num_attention_heads is 3"),
        ("num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("max_position_embeddings", json!(1), "is 1; it must be at least 4"),
        ("vocab_size", json!(5), "token 11 is beyond the model's vocab_size, which is 5"),
        ("hidden_act", json!("swish"), "swish"),
    ] {
        let folder = folder();
        let mut config = config(HIDDEN);
        config[key] = value;
        fs::write(folder.path().join(CONFIG), config.to_string()).unwrap();
        let error = refusal(&folder).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn weights_that_are_not_numbers_are_refused_when_opened() {
    let folder = folder();
    save(&folder, &weights(HIDDEN, f32::NAN));
    let error = refusal(&folder).to_string();
    assert!(error.contains("NaN"), "{error}");
}
