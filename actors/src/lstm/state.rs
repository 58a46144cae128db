//! The stored form of the member: safetensors bytes with the configuration in their metadata.

use candle_core::{Device, Tensor};
use foreshard_policy::forecast::ForecastError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::net::Net;
use super::{LstmConfig, NAME, numeric};

/// Version of the layout below; another one is refused.
const VERSION: u32 = 1;

/// Key of the configuration within the metadata.
const META: &str = "foreshard";

/// Most bytes of a header that is read.
const HEADER_BYTES_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Meta {
    version: u32,
    member: String,
    steps: u64,
    config: LstmConfig,
}

fn unusable(reason: impl Into<String>) -> ForecastError {
    ForecastError::State { member: NAME, reason: reason.into() }
}

/// Writes header length, JSON header and little-endian data, as the format asks for.
///
/// By hand, because candle writes safetensors to files only, and without metadata.
pub(super) fn write(config: &LstmConfig, steps: u64, net: &Net) -> Result<Vec<u8>, ForecastError> {
    let meta = Meta { version: VERSION, member: NAME.into(), steps, config: config.clone() };
    let meta = serde_json::to_string(&meta).map_err(|error| unusable(error.to_string()))?;
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ META: meta }));
    let mut data = Vec::new();
    for (name, tensor) in net.vars() {
        let start = data.len();
        for value in floats(tensor).map_err(|error| numeric(&error))? {
            data.extend(value.to_le_bytes());
        }
        let entry = json!({
            "dtype": "F32", "shape": tensor.dims(), "data_offsets": [start, data.len()]
        });
        header.insert(name.into(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    Ok(bytes)
}

fn floats(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Reads what [`write`] wrote.
pub(super) fn read(bytes: &[u8]) -> Result<(LstmConfig, u64, Net), ForecastError> {
    let meta = meta(bytes)?;
    if meta.member != NAME {
        return Err(unusable(format!("it belongs to member {}", meta.member)));
    }
    if meta.version != VERSION {
        return Err(unusable(format!("its version is {}; it must be {VERSION}", meta.version)));
    }
    let config = meta.config.checked().map_err(|error| unusable(error.to_string()))?;
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)
        .map_err(|error| unusable(error.to_string()))?;
    for (name, tensor) in &tensors {
        let values = floats(tensor).map_err(|error| unusable(error.to_string()))?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(unusable(format!("weight {name} holds a value that is no number")));
        }
    }
    let net = Net::from_tensors(&config, &tensors).map_err(|error| unusable(error.to_string()))?;
    Ok((config, meta.steps, net))
}

fn meta(bytes: &[u8]) -> Result<Meta, ForecastError> {
    let short = || unusable(format!("{} bytes are too few for a header", bytes.len()));
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        return Err(unusable(format!(
            "its header is said to be {length} bytes; the most is {HEADER_BYTES_MAX}"
        )));
    }
    let length = usize::try_from(length).map_err(|_| short())?;
    let header = rest.get(..length).ok_or_else(short)?;
    let header: Value = serde_json::from_slice(header)
        .map_err(|error| unusable(format!("its header is not JSON: {error}")))?;
    let text = header["__metadata__"][META]
        .as_str()
        .ok_or_else(|| unusable("its header has no foreshard metadata"))?;
    serde_json::from_str(text).map_err(|error| unusable(format!("its metadata: {error}")))
}
