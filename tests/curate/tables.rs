//! Which tables are found, and what their columns may be.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::world::{Finished, World};

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

#[test]
fn what_is_hidden_or_temporary_below_a_pattern_is_no_table() {
    let world = World::of_rows(12);
    let table = world.path("run/tables/laion/part-0.parquet");
    for name in [".ipynb_checkpoints", "_temporary/0", "deep/.tmp", ".hidden"] {
        let folder = world.path("run/tables/laion").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(&table, folder.join("part-0.parquet")).unwrap();
    }
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    world.document(&recipe.replace("/laion/*.parquet", "/laion/**/*.parquet"));
    let plan = world.curate(&["--plan"]).ends_with(0).stdout();
    assert!(plan.contains("12          rows"), "{plan}");
    // Unless it is what the pattern begins with.
    world.document(&recipe.replace("/laion/*.parquet", "/laion/.hidden/*.parquet"));
    world.curate(&["--plan"]).ends_with(0);
}

#[test]
fn a_file_of_two_names_is_read_once() {
    let world = World::of_rows(12);
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    let (one, other) = ("{run}/tables/laion/*.parquet", "{run}/tables/../tables/laion");
    world.document(&recipe.replace(&format!("[\"{one}\"]"), &format!("[\"{one}\", \"{other}\"]")));
    let plan = world.curate(&["--plan"]).ends_with(0).stdout();
    assert!(plan.contains("12          rows"), "{plan}");
}

#[test]
fn folders_of_the_command_line_are_no_patterns() {
    let world = World::of_rows(12);
    for paths in ["{run}/tables/laion/*.parquet", "{run}/tables/laion", "../run/tables/laion/part-0.parquet"] {
        let home = world.path("home [a]*?");
        fs::create_dir_all(&home).unwrap();
        let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
        world.document(&recipe.replace("{run}/tables/laion/*.parquet", paths));
        for folder in ["run", "manifest"] {
            fs::rename(world.path(folder), home.join(folder)).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_curate"));
        command.arg("--manifest").arg(home.join("manifest")).arg("--run").arg(home.join("run")).arg("--plan");
        let plan = Finished(command.output().unwrap()).ends_with(0).stdout();
        assert!(plan.contains("12          rows"), "{paths}: {plan}");
        for folder in ["run", "manifest"] {
            fs::rename(home.join(folder), world.path(folder)).unwrap();
        }
        world.document(&recipe);
    }
}

#[test]
fn why_no_table_is_found_is_said() {
    let world = World::of_rows(3);
    let folder = world.path("run/tables/odd");
    fs::create_dir_all(folder.join("empty")).unwrap();
    fs::write(folder.join("X.PARQUET"), b"").unwrap();
    fs::write(folder.join("_x.parquet"), b"").unwrap();
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    for (path, says) in [
        ("odd/[.parquet", "it is no glob"),
        ("odd/x*.parquet", "X.PARQUET is another name, by its case"),
        ("odd/*x.parquet", "_x.parquet"),
        ("nowhere/x.parquet", "there is no such file or folder"),
        ("nowhere/*.parquet", "nothing there has such a name"),
        ("odd/empty", "nothing there has such a name"),
    ] {
        world.document(&recipe.replace("laion/*.parquet", path));
        world.curate(&[]).ends_with(2).says("no parquet file matches").says(says);
    }
}
