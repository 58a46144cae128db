//! What the differential tests share: a model of a table, and the judge, the engines of several shapes
//! and the random controller of the benchmark `exact`.

pub(crate) mod model;

pub(crate) use foreshard_benchmarks::exact::{
    controller, data, functions, oracle, redefined, runtime, setups, trial,
};
