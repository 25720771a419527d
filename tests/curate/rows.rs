//! What becomes of rows.

use std::collections::BTreeMap;
use std::fs;

use polars::prelude::{Column, df};
use serde_json::Value;
use shards::Index;

use crate::server::{Answer, Server};
use crate::world::{Row, World, jpeg, write};

fn reasons(world: &World) -> BTreeMap<String, u64> {
    let totals = world.index().totals;
    let reasons: BTreeMap<String, u64> = serde_json::from_value(totals["reasons"].clone()).unwrap();
    let rows = totals["rows"].as_u64().unwrap();
    assert_eq!(rows, totals["kept"].as_u64().unwrap() + reasons.values().sum::<u64>(), "{totals}");
    reasons
}

#[test]
fn every_row_ends_in_one_place_and_a_second_run_asks_nobody() {
    let world = World::empty();
    let server = &world.server;
    let good = |n: u64| server.route(&format!("/good{n}.jpg"), Answer::ok(jpeg(256, 256, n)));
    let caption = "a fine picture";
    let with = |change: &dyn Fn(&mut Row)| {
        let mut row = Row::new(format!("http://127.0.0.1:{}/never", server.port), caption);
        change(&mut row);
        row
    };
    let mut cut = jpeg(256, 256, 3);
    cut.truncate(cut.len() / 2);
    let rows = [
        Row::new(good(1), "  a &amp;quot;fine&amp;quot;   picture "),
        with(&|r| r.width = Some(64.0)),
        with(&|r| r.width = Some(f64::NAN)),
        with(&|r| r.height = None),
        with(&|r| r.height = Some(f64::INFINITY)),
        with(&|r| r.score = Some(5.5)),
        with(&|r| r.score = None),
        with(&|r| r.score = Some(f32::NAN)),
        with(&|r| r.score = Some(f32::INFINITY)),
        with(&|r| r.url = None),
        with(&|r| r.url = Some(" ".into())),
        with(&|r| r.text = None),
        with(&|r| r.text = Some("ab".into())),
        Row::new("not a url".into(), caption),
        Row::new("file:///etc/passwd".into(), caption),
        Row::new("http://169.254.169.254/latest/meta-data".into(), caption),
        Row::new(server.route("/missing.jpg", Answer::status(404)), caption),
        Row::new(server.route("/robots.jpg", Answer::ok(jpeg(256, 256, 2)).with("X-Robots-Tag", "noai")), caption),
        Row::new(server.route("/page.jpg", Answer::ok(b"<html>no</html>".to_vec())), caption),
        Row::new(server.route("/cut.jpg", Answer::ok(cut)), caption),
        Row::new(server.route("/small.jpg", Answer::ok(jpeg(256, 128, 4))), caption),
        Row::new(server.route("/copy.jpg", Answer::ok(jpeg(256, 256, 1))), caption),
        Row::new(good(5), caption),
    ];
    world.laion("laion/a.parquet", &rows);
    world.recipe("[captions]\nmin_chars = 3");
    world.curate(&[]).ends_with(0);

    let expected = [
        ("caption.too_short", 1),
        ("decode.not_an_image", 1),
        ("decode.truncated", 1),
        ("duplicate.exact", 1),
        ("fetch.blocked_ip", 1),
        ("fetch.blocked_scheme", 1),
        ("fetch.invalid_url", 1),
        ("fetch.not_found", 1),
        ("fetch.opted_out", 1),
        ("filter.aesthetic_v2", 1),
        ("filter.aesthetic_v2_missing", 3),
        ("filter.no_caption", 1),
        ("filter.no_url", 2),
        ("filter.size_missing", 3),
        ("filter.too_small", 1),
        ("image.too_small", 1),
    ];
    assert_eq!(reasons(&world), expected.map(|(reason, rows)| (reason.to_owned(), rows)).into());
    assert!(!server.asked().contains_key("/never"), "a row that its table rules out is not asked for");

    let samples = world.samples();
    assert_eq!(samples.iter().map(|s| s.key.as_str()).collect::<Vec<_>>(), ["s00-000000000", "s00-000000022"]);
    let first = &samples[0];
    assert_eq!(first.require("jpg").unwrap(), jpeg(256, 256, 1), "the bytes as they came");
    assert_eq!(first.require("txt").unwrap(), "a \"fine\" picture".as_bytes());
    let record: Value = serde_json::from_slice(first.require("json").unwrap()).unwrap();
    assert_eq!(record["caption_original"], "  a &amp;quot;fine&amp;quot;   picture ");
    assert_eq!(record["caption_changed_by"], serde_json::json!(["entities", "spaces"]));
    assert_eq!((record["width"].as_u64(), record["row"].as_u64()), (Some(256), Some(0)));
    assert_eq!(record["scores"]["aesthetic_v2"], 6.0);
    assert!(record["sharpness"]["whole"].as_f64().unwrap() > 0.0);
    let report = fs::read_to_string(world.curated("report.html")).unwrap();
    assert!(report.contains("2 samples of 23 rows") && report.contains("data:image/jpeg;base64,/9j/"));
    assert!(!report.contains("<script") && !report.contains("http-equiv"));

    let (before, requests) = (world.snapshot(), server.requests());
    let again = world.curate(&[]).ends_with(0);
    assert!(again.stdout().contains("nothing to do"), "{}", again.stdout());
    assert_eq!((world.snapshot(), server.requests()), (before, requests));
    world.curate(&["--verify"]).ends_with(0);
}

#[test]
fn no_connection_is_made_to_an_address_that_is_not_public() {
    let world = World::empty();
    let canary = Server::start();
    let port = canary.port;
    let mut urls: Vec<String> = [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "localhost",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
    ]
    .map(|host| format!("http://{host}:{port}/canary"))
    .into();
    urls.push(world.server.route("/away", Answer::status(302).with("Location", &format!("http://127.0.0.1:{port}/x"))));
    let rows: Vec<Row> = urls.into_iter().map(|url| Row::new(url, "a canary in a cage")).collect();
    world.laion("laion/a.parquet", &rows);
    world.recipe("");
    world.curate(&[]).ends_with(0);
    assert_eq!(reasons(&world), BTreeMap::from([("fetch.blocked_ip".to_owned(), 11)]));
    assert_eq!(canary.connections(), 0);
}

#[test]
fn the_recipe_may_ask_for_square_jpegs() {
    let world = World::empty();
    let url = world.server.route("/wide.jpg", Answer::ok(jpeg(300, 220, 1)));
    world.laion("laion/a.parquet", &[Row::new(url, "a wide picture")]);
    world.recipe("");
    let text = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    world.document(&text.replace("[image]\n", "[image]\nstore = { square_jpeg = { side = 96, quality = 90 } }\n"));
    world.curate(&[]).ends_with(0);
    let samples = world.samples();
    let image = pixels::decode(samples[0].require("jpg").unwrap(), &pixels::Limits::default()).unwrap();
    assert_eq!((image.width(), image.height()), (96, 96));
    let record: Value = serde_json::from_slice(samples[0].require("json").unwrap()).unwrap();
    assert_eq!((record["width"].as_u64(), record["height"].as_u64()), (Some(300), Some(220)), "of the original");
}

#[test]
fn swapped_sizes_are_told() {
    let world = World::empty();
    let row = |name: &str, image: Vec<u8>, width: f64, height: f64| {
        let url = world.server.route(name, Answer::ok(image));
        Row { width: Some(width), height: Some(height), ..Row::new(url, "a picture of some shape") }
    };
    // A camera held on its side: EXIF's orientation 6, after the first marker.
    let mut turned = jpeg(300, 220, 3);
    let exif = b"\xFF\xE1\x00\x22Exif\0\0MM\0\x2A\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    turned.splice(2..2, exif.iter().copied());
    world.laion(
        "laion/a.parquet",
        &[
            row("/swapped.jpg", jpeg(300, 220, 1), 220.0, 300.0),
            row("/right.jpg", jpeg(300, 220, 2), 300.0, 220.0),
            row("/turned.jpg", turned, 300.0, 220.0),
            row("/square.jpg", jpeg(300, 300, 4), 300.0, 300.0),
        ],
    );
    world.recipe("");
    world.curate(&[]).ends_with(0);
    let report = fs::read_to_string(world.curated("report.html")).unwrap();
    assert!(report.contains("Source 0: 1 of 2 images that are not square have the width"), "{report}");
    assert_eq!(world.samples().len(), 4);
}

#[test]
fn each_optional_filter_has_its_reason_and_its_reason_for_nothing_there() {
    let world = World::empty();
    let url = |n: u64| world.server.route(&format!("/{n}.jpg"), Answer::ok(jpeg(256, 256, n)));
    // Row 0 passes all; each of the others fails one.
    let rows = 11;
    let column = |name: &str, good: f64, bad: f64, at: usize| {
        let values = (0..rows).map(|n| if n == at { Some(bad) } else { (n != at + 1).then_some(good) });
        Column::new(name.into(), values.collect::<Vec<Option<f64>>>())
    };
    let label = |name: &str, good: &str, bad: &str, at: usize| {
        let values = (0..rows).map(|n| if n == at { Some(bad) } else { (n != at + 1).then_some(good) });
        Column::new(name.into(), values.map(|v| v.map(str::to_owned)).collect::<Vec<_>>())
    };
    let mut frame = df!(
        "SAMPLE_ID" => (0..rows as i64).collect::<Vec<_>>(),
        "URL" => (0..rows as u64).map(url).collect::<Vec<_>>(),
        "TEXT" => vec!["some words about it"; rows],
        "HEIGHT" => vec![256_i32; rows],
        "WIDTH" => vec![256_i32; rows],
    )
    .unwrap();
    for more in [
        label("NSFW", "UNLIKELY", "NSFW", 1),
        label("LANGUAGE", "EN", "de", 3),
        column("similarity", 0.4, 0.2, 5),
        column("pwatermark", 0.1, 0.9, 7),
        column("punsafe", 0.1, 0.5, 9),
    ] {
        frame.with_column(more).unwrap();
    }
    write(&world.path("run/tables/laion/a.parquet"), &mut frame);
    world.recipe("");
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    world.document(&recipe.replace(
        "scores = [{ score = \"aesthetic_v2\", above = 5.5 }]",
        "nsfw = [\"unlikely\"]\nlanguages = [\"en\"]\nscores = [{ score = \"similarity\", at_least = 0.3 }, \
         { score = \"watermark\", below = 0.8 }, { score = \"punsafe\", below = 0.5 }]",
    ));
    let plan = world.curate(&["--plan"]).ends_with(0).stdout();
    assert!(plan.contains("1   9.091%  null in pwatermark of source 0, 0 NaN or infinite"), "{plan}");
    world.curate(&[]).ends_with(0);
    let expected = [
        "filter.language",
        "filter.language_missing",
        "filter.nsfw",
        "filter.nsfw_missing",
        "filter.punsafe",
        "filter.punsafe_missing",
        "filter.similarity",
        "filter.similarity_missing",
        "filter.watermark",
        "filter.watermark_missing",
    ];
    assert_eq!(reasons(&world), expected.map(|reason| (reason.to_owned(), 1)).into());
    assert_eq!(world.samples().len(), 1);
}

#[test]
fn rows_that_repeat_an_url_have_keys_of_their_own() {
    let world = World::empty();
    let url = world.server.route("/a/b.c/d.jpg?of=/e/f", Answer::ok(jpeg(256, 256, 1)));
    let other = world.server.route("/s00-000000001.jpg", Answer::ok(jpeg(256, 256, 2)));
    let row = |url: &String| Row::new(url.clone(), "a picture told of twice");
    world.laion("laion/a.parquet", &[row(&url), row(&url), row(&other)]);
    world.laion("laion/b.parquet", &[row(&url), row(&other)]);
    world.recipe("");
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    let source = &recipe[recipe.find("[[source]]").unwrap()..];
    world.document(&format!("{recipe}{source}[duplicates]\nexact = false\n"));
    world.curate(&[]).ends_with(0);
    let samples = world.samples();
    let keys: Vec<&str> = samples.iter().map(|s| s.key.as_str()).collect();
    let of = |source: u64| (0..5).map(move |row| format!("s{source:02}-{row:09}"));
    assert_eq!(keys, of(0).chain(of(1)).collect::<Vec<_>>());
    world.curate(&["--verify"]).ends_with(0);

    world.forget();
    world.document(&format!("{recipe}{source}"));
    world.curate(&[]).ends_with(0);
    assert_eq!(reasons(&world), BTreeMap::from([("duplicate.exact".to_owned(), 8)]));
    assert_eq!(world.samples().iter().map(|s| s.key.clone()).collect::<Vec<_>>(), ["s00-000000000", "s00-000000002"]);
}

#[test]
fn the_plan_tells_what_a_run_would_request_and_requests_nothing() {
    let world = World::of_rows(60);
    let plan = world.curate(&["--plan"]).ends_with(0).stdout();
    assert!(plan.contains("60          rows") && plan.contains("10.000%  filter.too_small, 54 left"), "{plan}");
    assert!(plan.contains("to be requested, of 1 hosts") && plan.contains("127.0.0.1"), "{plan}");
    assert!(plan.contains("expected: about 27 samples"), "{plan}");
    assert_eq!(world.server.requests(), 0);
    assert!(!world.path("run/curated").exists());
}

#[test]
fn the_recipe_is_shown_with_every_value() {
    let world = World::of_rows(3);
    let shown = world.curate(&["--show-recipe"]).ends_with(0).stdout();
    for line in ["total_seconds = 60.0", "honour_opt_outs = true", "score = \"aesthetic_v2\"", "samples = 7"] {
        assert!(shown.contains(line), "{line} in {shown}");
    }
}

#[test]
fn new_thresholds_over_stored_answers_make_what_a_run_with_them_would_have_made() {
    let world = World::of_rows(60);
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    world.curate(&[]).ends_with(0);
    let requests = world.server.requests();
    let first = world.run_folder().to_string_lossy().into_owned();
    let shard_bytes = |run: &str| {
        let shards = fs::read_dir(world.path(run).join("curated/shards")).unwrap();
        shards.map(|f| f.unwrap()).map(|f| (f.file_name(), fs::read(f.path()).unwrap())).collect::<BTreeMap<_, _>>()
    };
    // The sharpest half of the noise, in other shards.
    let samples = world.samples();
    let mut sharpness: Vec<f64> = samples
        .iter()
        .map(|s| serde_json::from_slice::<Value>(s.require("json").unwrap()).unwrap())
        .map(|record| record["sharpness"]["whole"].as_f64().unwrap())
        .collect();
    sharpness.sort_by(f64::total_cmp);
    let rule = format!("[sharpness]\nmin_whole = {}\n[shards]\nsamples = 5\n", sharpness[sharpness.len() / 2]);
    let stricter = recipe.replace("[shards]\nsamples = 7\n", &rule).replace("{run}", &first);
    world.document(&stricter);
    let refilter = |run: &str, stored: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_curate"));
        command.arg("--manifest").arg(world.path("manifest")).arg("--run").arg(world.path(run));
        if !stored.is_empty() {
            command.args(["--refilter", stored]);
        }
        crate::world::Finished(command.output().unwrap())
    };
    refilter("again", &first).ends_with(0);
    assert_eq!(world.server.requests(), requests, "nobody is asked");
    assert!(refilter("again", &first).ends_with(0).stdout().contains("nothing to do"));
    refilter("fresh", "").ends_with(0);
    assert_eq!(shard_bytes("again"), shard_bytes("fresh"));
    let kept = |run: &str| {
        Index::<Value>::load(world.path(run).join("curated"), "stepdown-curated", 1).unwrap().unwrap().count() as usize
    };
    assert_eq!(kept("again"), samples.len() - samples.len() / 2);

    // Looser than the run that gave the answers: what is not there is said to be missing.
    world.document(
        &stricter.replace("min_whole", "min_detail").replace("min_side = 200\nscores", "min_side = 1\nscores"),
    );
    let again = world.path("again").to_string_lossy().into_owned();
    let loose = refilter("loose", &again).ends_with(0).stdout();
    assert!(loose.contains("stored.never_asked"), "{loose}");
    world.document(&recipe.replace("{run}", &first));
    let loose = refilter("looser", &again).ends_with(0).stdout();
    assert!(loose.contains("stored.file_not_kept"), "{loose}");
    refilter("other", "/nowhere").ends_with(2).says("no finished run");
}

/// The recipe of `world` with the tables of its run named in full, for runs in other folders.
fn recipe_for_any_run(world: &World) -> String {
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    recipe.replace("{run}", &world.run_folder().to_string_lossy())
}

/// Runs the recipe in another folder, over the answers of the first run if `stored`.
fn run_again(world: &World, run: &str, stored: bool) -> crate::world::Finished {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_curate"));
    command.arg("--manifest").arg(world.path("manifest")).arg("--run").arg(world.path(run));
    if stored {
        command.arg("--refilter").arg(world.run_folder());
    }
    crate::world::Finished(command.output().unwrap())
}

/// What a run published of its rows.
fn published(world: &World, run: &str) -> (BTreeMap<std::ffi::OsString, Vec<u8>>, Vec<u8>) {
    let curated = world.path(run).join("curated");
    let shards = fs::read_dir(curated.join("shards")).unwrap().map(|f| f.unwrap());
    let shards = shards.map(|f| (f.file_name(), fs::read(f.path()).unwrap())).collect();
    (shards, fs::read(curated.join("samples.parquet")).unwrap())
}

#[test]
fn a_copy_takes_the_place_of_an_original_that_a_stricter_rule_turns_down() {
    let world = World::empty();
    let rows: Vec<Row> = (0..24)
        .map(|n| {
            // The first of each three with the same bytes has a score that a stricter threshold does not admit.
            let url = world.server.route(&format!("/{n}.jpg"), Answer::ok(jpeg(256, 256, n / 3)));
            Row { score: Some(if n % 3 == 0 { 6.0 } else { 7.0 }), ..Row::new(url, "some words") }
        })
        .collect();
    world.laion("laion/a.parquet", &rows);
    world.recipe("");
    world.curate(&[]).ends_with(0);
    assert_eq!(reasons(&world), BTreeMap::from([("duplicate.exact".to_owned(), 16)]));
    world.document(&recipe_for_any_run(&world).replace("above = 5.5", "above = 6.5"));
    run_again(&world, "again", true).ends_with(0);
    run_again(&world, "fresh", false).ends_with(0);
    assert!(published(&world, "again") == published(&world, "fresh"));
    let index: Index<Value> = Index::load(world.path("again/curated"), "stepdown-curated", 1).unwrap().unwrap();
    assert_eq!(index.totals["reasons"], serde_json::json!({ "duplicate.exact": 8, "filter.aesthetic_v2": 8 }));
    assert_eq!(index.count(), 8);
}

#[test]
fn stricter_limits_on_the_size_hold_for_stored_answers_too() {
    let world = World::empty();
    let mut turned = jpeg(300, 220, 3);
    let exif = b"\xFF\xE1\x00\x22Exif\0\0MM\0\x2A\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    turned.splice(2..2, exif.iter().copied());
    let row = |name: &str, image: Vec<u8>| Row::new(world.server.route(name, Answer::ok(image)), "some words");
    let rows = [row("/1.jpg", jpeg(256, 256, 1)), row("/2.jpg", jpeg(300, 210, 2)), row("/3.jpg", turned)];
    world.laion("laion/a.parquet", &rows);
    world.recipe("");
    world.curate(&[]).ends_with(0);
    let recipe = recipe_for_any_run(&world);
    for (run, rule, reason) in [("pixels", "max_pixels = 65000", 2), ("side", "max_side = 299", 2)] {
        world.document(&recipe.replace("[image]\n", &format!("[image]\n{rule}\n")));
        run_again(&world, run, true).ends_with(0);
        let fresh = format!("fresh-{run}");
        run_again(&world, &fresh, false).ends_with(0);
        assert!(published(&world, run) == published(&world, &fresh), "{rule}");
        let index: Index<Value> = Index::load(world.path(run).join("curated"), "stepdown-curated", 1).unwrap().unwrap();
        assert_eq!(index.totals["reasons"], serde_json::json!({ "decode.too_many_pixels": reason }));
    }
}

#[test]
fn what_changes_the_answers_themselves_is_refused_with_its_own_advice() {
    let world = World::of_rows(3);
    world.curate(&[]).ends_with(0);
    let recipe = recipe_for_any_run(&world);
    world.document(&recipe.replace("[image]\n", "[image]\nstore = { square_jpeg = { side = 96, quality = 90 } }\n"));
    let refused = run_again(&world, "again", true).ends_with(2).says("image.store changed").says("without --refilter");
    assert!(!refused.stderr().contains("remove this folder"), "{}", refused.stderr());
}

#[test]
fn a_caption_of_which_cleaning_leaves_nothing_is_none() {
    let world = World::empty();
    let row =
        |n: u64, text: &str| Row::new(world.server.route(&format!("/{n}.jpg"), Answer::ok(jpeg(256, 256, n))), text);
    let rows = [
        row(0, "<br/>"),
        row(1, "https://example.org/a.jpg"),
        row(2, "\u{200b}\u{feff}"),
        row(3, "<a photo of a cat>"),
        row(4, "<a href='x'>a cat</a>"),
    ];
    world.laion("laion/a.parquet", &rows);
    world.recipe("");
    world.curate(&[]).ends_with(0);
    assert_eq!(reasons(&world), BTreeMap::from([("filter.no_caption".to_owned(), 3)]));
    let captions: Vec<_> = world.samples().iter().map(|s| s.require("txt").unwrap().to_owned()).collect();
    assert_eq!(captions, [b"<a photo of a cat>".as_slice(), b"a cat"]);
}

#[test]
fn hosts_are_told_by_the_name_that_is_asked() {
    let world = World::empty();
    let urls = [
        "http://a.example/1",
        "http://A.Example/2",
        "HTTPS://a.example./3",
        "http:\\\\a.example\\4",
        "http://b.example/",
    ];
    world.laion("laion/a.parquet", &urls.map(|url| Row::new(url.to_owned(), "some words")));
    world.recipe("");
    let plan = world.curate(&["--plan"]).ends_with(0).stdout();
    assert!(plan.contains("of 2 hosts") && plan.contains("4  80.000%  a.example\n"), "{plan}");
}
