//! Places on Earth: H3 cells and great-circle distances.
//!
//! A latitude outside -90..90, a longitude outside -180..180, NaN and infinity are no place: they
//! give NULL. (PostGIS coerces them with a notice, BigQuery fails the query; the first turns swapped
//! arguments into wrong answers, the second lets one bad row fail millions.)

use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};
use geo::{Distance, Haversine, Point};
use h3o::{CellIndex, LatLng, Resolution};

use crate::card::{Card, CostClass};
use crate::native::{Native, integer, number, text};

pub(crate) fn functions() -> Vec<(Card, ScalarUDF)> {
    vec![h3_cell(), h3_distance(), haversine_km()]
}

fn h3_cell() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "h3_cell",
        "1",
        CostClass::Free,
        "The H3 cell that a place lies in, as 15 hexadecimal digits (the way H3 tools and maps \
         exchange cells). Degrees; resolution 0 (continents) to 15 (1 m). NULL if latitude and \
         longitude are no place on Earth.",
        "SELECT h3_cell(48.8584, 2.2945, 9)",
    );
    let signature =
        Signature::coercible(vec![number(), number(), integer()], Volatility::Immutable);
    Native::new(card, signature, DataType::Utf8, |arguments| {
        let (lat, lon) = (arguments.numbers(0)?, arguments.numbers(1)?);
        let resolutions = arguments.integers(2)?;
        let cells = (0..arguments.rows).map(|row| {
            let Some(resolution) = resolutions.get(row) else { return Ok(None) };
            let known = u8::try_from(resolution).ok().and_then(|r| Resolution::try_from(r).ok());
            let Some(known) = known else {
                return Err(arguments.refuse("resolution", resolution, "0 to 15"));
            };
            let place = place(lat.get(row), lon.get(row));
            let place = place.and_then(|(lat, lon)| LatLng::new(lat, lon).ok());
            Ok(place.map(|place| place.to_cell(known).to_string()))
        });
        Ok(Arc::new(cells.collect::<Result<StringArray>>()?))
    })
    .with_argument("latitude", "degrees north, -90 to 90")
    .with_argument("longitude", "degrees east, -180 to 180")
    .with_argument("resolution", "0 to 15; each step divides a cell by seven")
    .into_udf()
}

fn h3_distance() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "h3_distance",
        "1",
        CostClass::Free,
        "Number of H3 cells from one cell to another. NULL if either is no cell, if their \
         resolutions differ, or if H3 cannot tell (far apart, or across a pentagon).",
        "SELECT h3_distance('891fb46741bffff', '891fb46741bffff')",
    );
    let signature = Signature::coercible(vec![text(), text()], Volatility::Immutable);
    Native::new(card, signature, DataType::Int64, |arguments| {
        let (from, to) = (arguments.texts(0)?, arguments.texts(1)?);
        let distances = (0..arguments.rows).map(|row| {
            let from = CellIndex::from_str(from.get(row)?).ok()?;
            let to = CellIndex::from_str(to.get(row)?).ok()?;
            from.grid_distance(to).ok().map(i64::from)
        });
        Ok(Arc::new(distances.collect::<Int64Array>()))
    })
    .with_argument("from", "a cell in hexadecimal digits")
    .with_argument("to", "a cell of the same resolution")
    .into_udf()
}

fn haversine_km() -> (Card, ScalarUDF) {
    let card = Card::immutable(
        "haversine_km",
        "1",
        CostClass::Free,
        "Great-circle distance of two places in km, on a sphere of Earth's mean radius (within 0.6 % \
         of the ellipsoid). Degrees. NULL if either is no place on Earth.",
        "SELECT haversine_km(48.8584, 2.2945, 51.5007, -0.1246)",
    );
    let signature = Signature::coercible(vec![number(); 4], Volatility::Immutable);
    Native::new(card, signature, DataType::Float64, |arguments| {
        let (lat1, lon1) = (arguments.numbers(0)?, arguments.numbers(1)?);
        let (lat2, lon2) = (arguments.numbers(2)?, arguments.numbers(3)?);
        let distances = (0..arguments.rows).map(|row| {
            let (lat1, lon1) = place(lat1.get(row), lon1.get(row))?;
            let (lat2, lon2) = place(lat2.get(row), lon2.get(row))?;
            Some(Haversine.distance(Point::new(lon1, lat1), Point::new(lon2, lat2)) / 1_000.0)
        });
        Ok(Arc::new(distances.collect::<Float64Array>()))
    })
    .with_argument("latitude1", "degrees north, -90 to 90")
    .with_argument("longitude1", "degrees east, -180 to 180")
    .with_argument("latitude2", "degrees north, -90 to 90")
    .with_argument("longitude2", "degrees east, -180 to 180")
    .into_udf()
}

/// Latitude and longitude, if they are a place on Earth. NaN is in no range.
fn place(lat: Option<f64>, lon: Option<f64>) -> Option<(f64, f64)> {
    let (lat, lon) = (lat?, lon?);
    ((-90.0..=90.0).contains(&lat) && (-180.0..=180.0).contains(&lon)).then_some((lat, lon))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{Trial, numbers, texts};
    use arrow::array::ArrayRef;

    fn integers(values: &[i64]) -> ArrayRef {
        Arc::new(Int64Array::from(values.to_vec()))
    }

    #[test]
    fn a_place_has_the_cell_that_h3_publishes() {
        // The example of H3's own documentation: latLngToCell(37.3615593, -122.0553238, 7).
        let columns = [numbers([37.3615593]), numbers([-122.0553238]), integers(&[7])];
        assert_eq!(Trial::of(h3_cell()).rows(&columns).texts(), ["87283472bffffff"]);
    }

    #[test]
    fn no_place_on_earth_gives_null() {
        let lat = numbers([90.1, f64::NAN, f64::INFINITY, 0.0, 0.0, 90.0]);
        let lon = numbers([0.0, 0.0, 0.0, 180.5, f64::NAN, -180.0]);
        let columns = [Arc::clone(&lat), Arc::clone(&lon), integers(&[5; 6])];
        let cells = Trial::of(h3_cell()).rows(&columns).optional_texts();
        let known: Vec<bool> = cells.iter().map(Option::is_some).collect();
        assert_eq!(known, [false, false, false, false, false, true]);
        let columns = [Arc::clone(&lat), Arc::clone(&lon), lat, lon];
        let distances = Trial::of(haversine_km()).rows(&columns).optional_numbers();
        assert_eq!(distances, [None, None, None, None, None, Some(0.0)]);
    }

    #[test]
    fn a_resolution_out_of_range_is_an_error_that_names_the_range() {
        for resolution in [-1, 16, 300, i64::MIN] {
            let columns = [numbers([0.0]), numbers([0.0]), integers(&[resolution])];
            let error = Trial::of(h3_cell()).fails(&columns);
            let expected = format!("h3_cell: resolution is {resolution}; it must be 0 to 15");
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn cells_are_as_far_apart_as_the_grid_says() {
        let origin: CellIndex = "8928308280fffff".parse().unwrap();
        let ring: Vec<_> = origin.grid_ring_fast(2).flatten().collect();
        assert_eq!(ring.len(), 12);
        let other = ring[5].to_string();
        let from = texts(["8928308280fffff", "8928308280fffff", "no cell", "8928308280fffff"]);
        let to = texts(["8928308280fffff", &other, "8928308280fffff", "85283473fffffff"]);
        let distances = Trial::of(h3_distance()).rows(&[from, to]).0;
        let expected = Int64Array::from(vec![Some(0), Some(2), None, None]);
        assert_eq!(distances.as_ref(), &expected as &dyn arrow::array::Array);
    }

    #[test]
    fn paris_and_london_are_340_km_apart() {
        let paris_london =
            [numbers([48.8584]), numbers([2.2945]), numbers([51.5007]), numbers([-0.1246])];
        let km = Trial::of(haversine_km()).rows(&paris_london).numbers()[0];
        assert!((340.0..341.0).contains(&km), "{km}");
    }

    #[test]
    fn integers_and_decimals_are_numbers_and_texts_are_not() {
        let columns = [integers(&[0]), integers(&[0]), integers(&[0]), integers(&[90])];
        let km = Trial::of(haversine_km()).rows(&columns).numbers()[0];
        assert!((10_007.0..10_008.0).contains(&km), "{km}");
        let text = [DataType::Utf8, DataType::Float64, DataType::Int64];
        let error = Trial::of(h3_cell()).refuses(&text);
        assert!(error.contains("h3_cell"), "{error}");
        let fraction = [DataType::Float64, DataType::Float64, DataType::Float64];
        assert!(Trial::of(h3_cell()).refuses(&fraction).contains("Int64"));
    }

    #[test]
    fn places_keep_the_rules_of_the_library() {
        let (lat, lon) = (numbers([0.0, 48.8, 91.0]), numbers([0.0, 2.3, 0.0]));
        let columns = [Arc::clone(&lat), Arc::clone(&lon), integers(&[0, 9, 3])];
        Trial::of(h3_cell()).keeps_the_rules_of_the_library(&columns);
        let columns = [Arc::clone(&lat), Arc::clone(&lon), lon, lat];
        Trial::of(haversine_km()).keeps_the_rules_of_the_library(&columns);
        let cells = ["8928308280fffff", "85283473fffffff", ""];
        Trial::of(h3_distance()).keeps_the_rules_of_the_library(&[texts(cells), texts(cells)]);
    }
}
