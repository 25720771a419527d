//! Which tables are found, and what their columns may be.

use std::path::PathBuf;

use crate::world::World;

/// A table that polars, as it is built here, cannot write: see `make_tables.py` there.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tables").join(name)
}

/// A world of one such table, with this filter.
fn world_of(name: &str, filter: &str) -> World {
    let world = World::of_rows(3);
    let table = fixture(name);
    world.document(&format!(
        "[fetch]\nuser_agent = \"stepdown-test/1.0 (+https://example.org)\"\n[[source]]\nkind = \"laion\"\n\
         paths = [{table:?}]\n[source.filter]\n{filter}\n"
    ));
    world
}

#[test]
fn columns_that_nobody_needs_may_be_of_any_type() {
    let filter = "min_side = 1000\nscores = [{ score = \"aesthetic_v2\", above = 5.5 }]";
    let plan = world_of("unused.parquet", filter).curate(&["--plan"]).ends_with(0).stdout();
    for line in ["1  25.000%  filter.too_small, 3 left", "1  25.000%  filter.aesthetic_v2, 2 left"] {
        assert!(plan.contains(line), "short integers and half-precision scores are read: {plan}");
    }
    assert!(plan.contains("h0.example") && plan.contains("h2.example"), "{plan}");
}

#[test]
fn text_may_be_written_as_categories() {
    let world = world_of("categories.parquet", "min_side = 100\nlanguages = [\"en\"]");
    let plan = world.curate(&["--plan"]).ends_with(0).stdout();
    for reason in ["filter.too_small, 3 left", "filter.language, 2 left"] {
        assert!(plan.contains(reason), "{plan}");
    }
    assert!(plan.contains("h0.example") && plan.contains("h2.example"), "{plan}");
}

#[test]
fn a_column_that_is_needed_and_of_no_type_that_can_be_read_is_named() {
    let score = "scores = [{ score = \"aesthetic_v2\", above = 5.5 }]";
    let refused = |name: &str, filter: &str, says: &str| {
        let output = world_of(name, filter).curate(&["--plan"]).ends_with(2).says(says).says(name);
        assert!(!output.stderr().contains("panicked"), "{}", output.stderr());
    };
    refused("decimal_score.parquet", score, "\"AESTHETIC_SCORE\", the aesthetic_v2, is of type decimal");
    refused("categories.parquet", "nsfw = [\"unlikely\"]", "\"NSFW\", the nsfw, is of type boolean");
    world_of("decimal_score.parquet", "").curate(&["--plan"]).ends_with(0);
    world_of("categories.parquet", "").curate(&["--plan"]).ends_with(0);
}
