//! Input that is wrong: one clear line, exit code 2, nobody asked, nothing made.

use std::fs;

use polars::prelude::df;

use crate::world::{Row, World, write};

#[track_caller]
fn refused(world: &World, says: &str) {
    let output = world.curate(&[]).ends_with(2).says(says);
    assert_eq!(output.stderr().lines().filter(|l| l.starts_with("curate: ")).count(), 1, "{}", output.stderr());
    assert!(!output.stderr().contains("panicked"), "{}", output.stderr());
    assert_eq!(world.server.requests(), 0);
    assert!(!world.path("run/curated").exists(), "nothing is made");
}

#[test]
fn recipes() {
    let world = World::of_rows(3);
    for (text, says) in [
        ("surprise = 1\n", "surprise"),
        ("[fetch]\n", "user_agent"),
        ("[fetch]\nuser_agent = \"x/1.0 (+y)\"\nfast = true\n", "fast"),
        ("[fetch\n", "data.toml"),
    ] {
        world.document(text);
        refused(&world, says);
    }
    fs::remove_file(world.path("manifest/data.toml")).unwrap();
    refused(&world, "data.toml");
}

#[test]
fn tables() {
    let world = World::of_rows(3);
    let laion = world.path("run/tables/laion/part-0.parquet");
    let whole = fs::read(&laion).unwrap();

    let cut = &whole[..whole.len() - 10];
    let mut broken_footer = whole.clone();
    let at = whole.len() - 40;
    broken_footer[at..at + 20].fill(0xFF);
    for bytes in [b"not parquet at all".as_slice(), b"", cut, &broken_footer] {
        fs::write(&laion, bytes).unwrap();
        refused(&world, "part-0.parquet");
    }

    let (url, text) = (["http://127.0.0.1/x"], ["some words"]);
    for (mut frame, says) in [
        (df!("link" => url, "TEXT" => text).unwrap(), "no column for the url"),
        (df!("URL" => url, "TEXT" => text, "AESTHETIC_SCORE" => [6.0]).unwrap(), "width"),
        (
            df!("URL" => url, "TEXT" => text, "WIDTH" => [9], "HEIGHT" => [9], "aesthetic" => [9.0]).unwrap(),
            "the scales differ",
        ),
        (
            df!("URL" => url, "TEXT" => text, "WIDTH" => ["9"], "HEIGHT" => [9], "AESTHETIC_SCORE" => [9.0]).unwrap(),
            "\"WIDTH\"",
        ),
    ] {
        write(&laion, &mut frame);
        refused(&world, says);
    }
    fs::remove_file(&laion).unwrap();
    refused(&world, "no parquet file matches");
}

#[test]
fn files_that_are_no_tables_are_passed_over() {
    let world = World::of_rows(12);
    for name in [".part-0.parquet", "._part-0.parquet", "part-0.parquet.crc", ".part-0.parquet.crc", "_SUCCESS"] {
        fs::write(world.path("run/tables/laion").join(name), b"noise").unwrap();
    }
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    world.document(&recipe.replace("/laion/*.parquet", "/laion/*"));
    world.curate(&[]).ends_with(0);
    assert_eq!(world.index().totals["rows"], 12);
}

#[test]
fn a_table_whose_pages_are_corrupt_stops_the_run_by_name() {
    let world = World::empty();
    let rows: Vec<Row> = (0..2000).map(|n| Row::new(format!("http://127.0.0.1:1/{n}"), "some words")).collect();
    world.laion("laion/a.parquet", &rows);
    world.recipe("");
    let path = world.path("run/tables/laion/a.parquet");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len() / 2;
    bytes[4..end].fill(0xA5);
    fs::write(&path, bytes).unwrap();
    world.curate(&[]).ends_with(2).says("a.parquet");
    assert!(!world.curated("index.json").exists());
}

/// The system's own folder stands in for a read-only one: nobody, root neither, may make files there.
#[test]
fn a_folder_where_nothing_can_be_written() {
    let world = World::of_rows(3);
    std::os::unix::fs::symlink("/sys/kernel", world.path("run/curated")).unwrap();
    let output = world.curate(&[]).ends_with(1).says("run/curated/.lock");
    let message = output.stderr();
    // In a container, /sys is mounted for reading alone.
    let causes = ["Permission denied", "Read-only file system"];
    assert!(causes.iter().any(|cause| message.contains(cause)), "{message}");
    assert_eq!(message.matches("os error").count(), 1, "the cause is said once: {message}");
    assert_eq!(world.server.requests(), 0);
}
