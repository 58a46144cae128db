//! The stored form of the member: safetensors bytes with configuration and progress in their metadata.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use foreshard_policy::forecast::ForecastError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::net::{Net, Scaling};
use super::optimizer::Optimizer;
use super::training::{Progress, Training};
use super::{LstmConfig, NAME, numeric};

/// Version of the layout below; another one is refused.
const VERSION: u32 = 2;

/// Key of the configuration within the metadata.
const META: &str = "foreshard";

/// Numbers of a scaling that are not one per input.
const REST: usize = 5;

/// Most bytes of a header that is read.
const HEADER_BYTES_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Meta {
    version: u32,
    member: String,
    config: LstmConfig,
    /// None if nothing was learned yet.
    learned: Option<Learned>,
}

#[derive(Serialize, Deserialize)]
struct Learned {
    horizons: Vec<usize>,
    /// Steps of the optimizer's schedule.
    optimizer_steps: u64,
    progress: Progress,
}

fn unusable(reason: impl Into<String>) -> ForecastError {
    ForecastError::State { member: NAME, reason: reason.into() }
}

/// Writes header length, JSON header and little-endian data, as the format asks for.
///
/// By hand, because candle writes safetensors to files only, and without metadata.
pub(super) fn write(
    config: &LstmConfig,
    training: Option<&Training>,
) -> Result<Vec<u8>, ForecastError> {
    let learned = training.map(|training| Learned {
        horizons: training.best.horizons.clone(),
        optimizer_steps: training.optimizer.steps,
        progress: training.progress.clone(),
    });
    let meta = Meta { version: VERSION, member: NAME.into(), config: config.clone(), learned };
    let meta = serde_json::to_string(&meta).map_err(|error| unusable(error.to_string()))?;
    let tensors = match training {
        Some(training) => tensors(training).map_err(|error| numeric(&error))?,
        None => Vec::new(),
    };
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ META: meta }));
    let mut data = Vec::new();
    for (name, shape, values) in tensors {
        let start = data.len();
        values.iter().for_each(|value| data.extend(value.to_le_bytes()));
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name, entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    Ok(bytes)
}

type Named = (String, Vec<usize>, Vec<f32>);

fn tensors(training: &Training) -> candle_core::Result<Vec<Named>> {
    let mut all = Vec::new();
    let optimizer = &training.optimizer;
    let sets = [
        ("best", training.best.values()?),
        ("used", training.used.values()?),
        ("live", training.live.values()?),
        ("first", optimizer.first.clone()),
        ("second", optimizer.second.clone()),
        ("average", optimizer.average.clone()),
    ];
    for (set, values) in sets {
        let shapes = training.best.vars().iter().map(|var| var.dims().to_vec());
        let named = values.into_iter().zip(shapes).enumerate();
        all.extend(named.map(|(var, (values, shape))| (format!("{set}.{var}"), shape, values)));
    }
    for (set, net) in [("best", &training.best), ("live", &training.live)] {
        for (head, scaling) in net.scalings.iter().enumerate() {
            let rest = [
                scaling.stretch[0],
                scaling.stretch[1],
                scaling.target,
                scaling.reach,
                scaling.penalty,
            ];
            let parts = [&scaling.mean[..], &scaling.inverse, &scaling.least, &scaling.greatest];
            let values = [&parts.concat()[..], &scaling.linear, &rest].concat();
            all.push((format!("{set}.scaling.{head}"), vec![values.len()], values));
        }
    }
    Ok(all)
}

/// Reads what [`write`] wrote, if it fits `config`.
pub(super) fn read(bytes: &[u8], config: &LstmConfig) -> Result<Option<Training>, ForecastError> {
    let meta = meta(bytes)?;
    if meta.member != NAME {
        return Err(unusable(format!("it belongs to member {}", meta.member)));
    }
    if meta.version != VERSION {
        return Err(unusable(format!("its version is {}; it must be {VERSION}", meta.version)));
    }
    let stored = meta.config.checked().map_err(|error| unusable(error.to_string()))?;
    let shape = |config: &LstmConfig| (config.hidden, config.window);
    if shape(&stored) != shape(config) {
        return Err(unusable(format!(
            "its (hidden, window) is {:?}; the settings ask for {:?}",
            shape(&stored),
            shape(config)
        )));
    }
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)
        .map_err(|error| unusable(error.to_string()))?;
    meta.learned.map(|learned| training(config, learned, &tensors)).transpose()
}

fn training(
    config: &LstmConfig,
    learned: Learned,
    tensors: &HashMap<String, Tensor>,
) -> Result<Training, ForecastError> {
    let Learned { horizons, optimizer_steps, progress } = learned;
    if horizons.is_empty() || !horizons.is_sorted() || horizons[0] == 0 {
        return Err(unusable(format!("its horizons are {horizons:?}")));
    }
    let model = Net::new(config, &horizons).map_err(|error| numeric(&error))?;
    let set = |set: &str| -> Result<Vec<Vec<f32>>, ForecastError> {
        let vars = model.vars().iter().enumerate();
        vars.map(|(var, like)| floats(tensors, &format!("{set}.{var}"), like.dims())).collect()
    };
    let net = |of: &str| -> Result<Net, ForecastError> {
        let scalings = (0..horizons.len())
            .map(|head| scaling(tensors, &format!("{of}.scaling.{head}")))
            .collect::<Result<_, _>>()?;
        Net::from_values(config.hidden, &horizons, scalings, set(of)?)
            .map_err(|error| numeric(&error))
    };
    let optimizer = Optimizer {
        steps: optimizer_steps,
        first: set("first")?,
        second: set("second")?,
        average: set("average")?,
    };
    let best = net("best")?;
    let used = best.with_values(set("used")?).map_err(|error| numeric(&error))?;
    Ok(Training { best, used, live: net("live")?, optimizer, progress })
}

fn scaling(tensors: &HashMap<String, Tensor>, name: &str) -> Result<Scaling, ForecastError> {
    let inputs = super::inputs::PER_HORIZON;
    let mut mean = floats(tensors, name, &[5 * inputs + 1 + REST])?;
    let rest = mean.split_off(5 * inputs + 1);
    let linear = mean.split_off(4 * inputs);
    let greatest = mean.split_off(3 * inputs);
    let least = mean.split_off(2 * inputs);
    let inverse = mean.split_off(inputs);
    let [low, high, target, reach, penalty] = [0, 1, 2, 3, 4].map(|place: usize| rest[place]);
    let stretch = [low, high];
    Ok(Scaling { mean, inverse, least, greatest, target, reach, stretch, linear, penalty })
}

fn floats(
    tensors: &HashMap<String, Tensor>,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, ForecastError> {
    let tensor = tensors.get(name).ok_or_else(|| unusable(format!("weight {name} is missing")))?;
    if tensor.dims() != shape || tensor.dtype() != DType::F32 {
        return Err(unusable(format!(
            "weight {name} is {:?} {:?}; it must be F32 {shape:?}",
            tensor.dtype(),
            tensor.dims()
        )));
    }
    let values: Vec<f32> =
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).map_err(|error| numeric(&error))?;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(unusable(format!("weight {name} holds a value that is no number")));
    }
    Ok(values)
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
