//! Integers in graphs: the numbers, the names that ranges are kept by, outliers, and `build`.

mod bundles;
mod maps;
mod names;
mod numbers;
mod outliers;
mod support;
