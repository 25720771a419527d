//! Object stores as the source of tables and as the target of shards.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::s3::{BUCKET, S3};
use crate::server::Answer;
use crate::world::{Finished, Row, World, jpeg, kill_until_it_ends};

/// The recipe of a world with its tables in the bucket.
fn tables_in(s3: &S3, world: &World) {
    copy(&world.path("run/tables"), &s3.object("tables"));
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    world.document(&recipe.replace("{run}/tables", &format!("s3://{BUCKET}/tables")).replace("/coyo\"", "/coyo/\""));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// A world whose shards go to the bucket.
fn targeted(rows: u64) -> World {
    let world = World::of_rows(rows);
    with_target(&world, "out");
    world
}

fn with_target(world: &World, folder: &str) {
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    world.document(&recipe.replace("[shards]\n", &format!("[shards]\ntarget = \"s3://{BUCKET}/{folder}\"\n")));
}

fn curate(s3: &S3, world: &World, options: &[&str]) -> Finished {
    let mut command = s3.known_to(world.command());
    Finished(command.args(options).output().unwrap())
}

/// What a run stored, but for the file that says whose it is.
fn stored(s3: &S3, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let mut objects = s3.objects(folder);
    assert!(objects.remove("run.json").is_some(), "{:?}", objects.keys());
    objects
}

#[test]
fn tables_of_a_bucket_give_what_tables_of_a_folder_give() {
    let world = World::of_rows(60);
    world.curate(&[]).ends_with(0);
    let local = world.snapshot();
    world.forget();

    let s3 = S3::start();
    tables_in(&s3, &world);
    for name in [".part-1.parquet", "_part-1.parquet", "part-1.parquet.crc", "deeper/part-1.parquet"] {
        let path = s3.object("tables/laion").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"noise").unwrap();
    }
    let plan = curate(&s3, &world, &["--plan"]).ends_with(0);
    assert!(plan.stdout().contains("60          rows"), "{}", plan.stdout());
    curate(&s3, &world, &[]).ends_with(0);
    for (path, bytes) in world.snapshot() {
        // The report prints the recipe, which differs by the paths.
        assert!(path.ends_with("report.html") || local[&path] == bytes, "{} differs", path.display());
    }
}

#[test]
fn tables_of_a_web_server_are_named_one_by_one() {
    let world = World::of_rows(30);
    let s3 = S3::public();
    tables_in(&s3, &world);
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    let web = format!("http://127.0.0.1:{}/{BUCKET}/tables", s3.port);
    let on_web = recipe.replace(&format!("s3://{BUCKET}/tables"), &web);
    world.document(&on_web.replace("*.parquet", "part-0.parquet").replace("coyo/", "coyo/part-0.parquet?key=1"));
    world.curate(&[]).ends_with(0);
    assert_eq!(world.index().totals["rows"], 30);

    world.document(&on_web);
    world.curate(&[]).ends_with(2).says("a web server does not tell which files it has");
}

#[test]
fn what_is_wrong_with_a_store_is_said_before_anybody_is_asked() {
    let world = World::of_rows(12);
    let s3 = S3::start();
    tables_in(&s3, &world);
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    let refused = |recipe: &str, change: &dyn Fn(&mut Command), code: i32, says: &str| {
        world.document(recipe);
        let mut command = s3.known_to(world.command());
        change(&mut command);
        let started = Instant::now();
        let output = Finished(command.output().unwrap()).ends_with(code).says(says);
        assert_eq!(output.stderr().lines().filter(|l| l.starts_with("curate: ")).count(), 1, "{}", output.stderr());
        assert!(started.elapsed() < Duration::from_secs(60), "{says}: {:?}", started.elapsed());
        assert!(!world.path("run/curated").exists(), "nothing is made");
    };
    let as_it_is = |_: &mut Command| {};
    refused(&recipe.replace(BUCKET, "elsewhere"), &as_it_is, 2, "there is no such bucket");
    refused(&recipe.replace("*.parquet", "part-7.parquet"), &as_it_is, 2, "no parquet file matches s3://pictures/");
    refused(&recipe.replace("/laion/*", "/none/*"), &as_it_is, 2, "no parquet file matches s3://pictures/tables/none");
    refused(
        &recipe,
        &|c| {
            c.env("AWS_SECRET_ACCESS_KEY", "wrong");
        },
        2,
        "refuses the credentials",
    );
    refused(
        &recipe,
        &|c| {
            c.env("AWS_ACCESS_KEY_ID", "nobody");
        },
        2,
        "refuses the credentials",
    );
    let without = |c: &mut Command| {
        c.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        // Where a machine of Amazon's would find credentials of its own.
        c.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1");
    };
    refused(&recipe, &without, 2, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
    let nobody = |c: &mut Command| {
        c.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    };
    refused(&recipe, &nobody, 1, "s3://pictures/tables");
    refused(&recipe.replace("s3://", "ftp://"), &as_it_is, 2, "ftp:// is not known");
    refused(&recipe.replace("s3://", "http://example.org/"), &as_it_is, 2, "is not encrypted");
    assert_eq!(world.server.requests(), 0);
}

#[test]
fn shards_in_a_bucket_are_those_of_a_folder() {
    let world = World::of_rows(60);
    world.curate(&[]).ends_with(0);
    let local = local_shards(&world);
    world.forget();

    let s3 = S3::start();
    with_target(&world, "deep/er");
    curate(&s3, &world, &[]).ends_with(0);
    let objects = stored(&s3, "deep/er");
    for (name, bytes) in &local {
        assert!(objects[name] == *bytes, "{name} differs");
    }
    for name in ["index.json", "samples.parquet", "report.html"] {
        assert!(objects[name] == fs::read(world.curated(name)).unwrap(), "{name} differs");
    }
    assert_eq!(objects.len(), local.len() + 3, "{:?}", objects.keys());
    assert!(!world.curated("shards").read_dir().is_ok_and(|mut files| files.next().is_some()), "no shard stays here");

    curate(&s3, &world, &["--verify"]).ends_with(0);
    let requests = world.server.requests();
    curate(&s3, &world, &[]).ends_with(0);
    assert_eq!((world.server.requests(), stored(&s3, "deep/er")), (requests, objects.clone()));

    // Every damage is found, and called by its place.
    let shard = s3.object("deep/er/shards/000001.tar");
    let mut damaged = objects["shards/000001.tar"].clone();
    damaged[700] ^= 1;
    fs::write(&shard, damaged).unwrap();
    curate(&s3, &world, &["--verify"]).ends_with(1).says("s3://pictures/deep/er/shards/000001.tar: SHA-256 is");
    fs::write(s3.object("deep/er/shards/000099.tar"), b"").unwrap();
    fs::write(&shard, &objects["shards/000001.tar"]).unwrap();
    curate(&s3, &world, &["--verify"]).ends_with(1).says("000099.tar: is not in the index");
    fs::remove_file(s3.object("deep/er/shards/000099.tar")).unwrap();
    fs::write(&shard, b"short").unwrap();
    curate(&s3, &world, &[]).ends_with(1).says("s3://pictures/deep/er/shards/000001.tar: has 5 bytes");
    fs::remove_file(&shard).unwrap();
    curate(&s3, &world, &["--verify"]).ends_with(2).says("deep/er/shards/000001.tar: there is no such object");
}

/// The shards of a finished run in its folder, called as in a bucket.
fn local_shards(world: &World) -> BTreeMap<String, Vec<u8>> {
    let shards = world.snapshot().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "tar"));
    shards.map(|(path, bytes)| (format!("shards/{}", path.file_name().unwrap().to_string_lossy()), bytes)).collect()
}

#[test]
fn placeholders_leave_the_shards_of_a_bucket_too() {
    let world = World::empty();
    let rows: Vec<Row> = (0..30)
        .map(|n| {
            let image = jpeg(256, 256, if n % 3 == 0 { 1000 } else { n });
            Row::new(world.server.route(&format!("/{n}.jpg"), Answer::ok(image)), "a picture or none")
        })
        .collect();
    world.laion("laion/a.parquet", &rows);
    world.recipe("[duplicates]\nplaceholder_urls = 4\n");
    world.curate(&[]).ends_with(0);
    let local = local_shards(&world);
    world.forget();
    let s3 = S3::start();
    with_target(&world, "out");
    curate(&s3, &world, &[]).ends_with(0);
    assert_eq!(world.index().totals["reasons"], serde_json::json!({ "duplicate.placeholder": 10 }));
    let objects = stored(&s3, "out");
    assert!(local.iter().all(|(name, bytes)| objects[name] == *bytes));
    assert!(!world.curated("shards").read_dir().is_ok_and(|mut files| files.next().is_some()), "no shard stays here");
    curate(&s3, &world, &["--verify"]).ends_with(0);
}

#[test]
fn a_large_shard_is_stored_in_parts_and_its_images_serve_another_run() {
    let world = World::empty();
    let rows: Vec<Row> = (0..20)
        .map(|n| {
            let url = world.server.route(&format!("/{n}.jpg"), Answer::ok(jpeg(1000, 1000, n)));
            Row::new(url, "a large picture of noise")
        })
        .collect();
    world.laion("laion/a.parquet", &rows);
    world.recipe("");
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    world.document(&recipe.replace("samples = 7", "samples = 100"));
    with_target(&world, "out");
    let s3 = S3::start();
    // Of the first part on, every request breaks off.
    s3.fail_after_puts(2, true);
    curate(&s3, &world, &[]).ends_with(1).says("s3://pictures/out/shards/000000.tar");
    s3.mend();
    curate(&s3, &world, &[]).ends_with(0);
    let objects = stored(&s3, "out");
    assert!(objects["shards/000000.tar"].len() > 8 << 20, "{}", objects["shards/000000.tar"].len());
    curate(&s3, &world, &["--verify"]).ends_with(0);

    copy(&world.path("run/tables"), &world.path("again/tables"));
    let requests = world.server.requests();
    let mut again = s3.known_to(Command::new(env!("CARGO_BIN_EXE_curate")));
    again.arg("--manifest").arg(world.path("manifest")).arg("--run").arg(world.path("again"));
    again.arg("--refilter").arg(world.run_folder());
    Finished(again.output().unwrap()).ends_with(2).says("another run keeps its results here");
    with_target_replaced(&world, "out", "again");
    Finished(again.output().unwrap()).ends_with(0);
    assert_eq!(world.server.requests(), requests);
    assert!(stored(&s3, "again")["shards/000000.tar"] == objects["shards/000000.tar"]);
}

fn with_target_replaced(world: &World, old: &str, new: &str) {
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    world.document(&recipe.replace(&format!("s3://{BUCKET}/{old}\""), &format!("s3://{BUCKET}/{new}\"")));
}

#[test]
fn a_killed_run_converges_at_its_target_too() {
    const ROWS: u64 = 90;
    let world = targeted(ROWS);
    let s3 = S3::start();
    world.server.shuffle(1, Duration::from_millis(30));
    let started = Instant::now();
    curate(&s3, &world, &[]).ends_with(0);
    let whole = started.elapsed();
    let wanted = (stored(&s3, "out"), published(&world));
    let kills: u64 = std::env::var("CURATE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let (mut killed, mut seed) = (0, 100);
    while killed < kills {
        world.forget();
        fs::remove_dir_all(s3.object("out")).unwrap();
        killed += kill_until_it_ends(|| s3.known_to(world.command()).spawn().unwrap(), &mut seed, whole);
        let found = (stored(&s3, "out"), published(&world));
        assert_eq!(found.0.keys().collect::<Vec<_>>(), wanted.0.keys().collect::<Vec<_>>());
        assert!(found == wanted, "a byte differs");
        curate(&s3, &world, &["--verify"]).ends_with(0);
    }
}

/// What lies in the run folder, but for the file that names the run.
fn published(world: &World) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut files = world.snapshot();
    assert!(files.remove(&world.curated("target.json")).is_some());
    files
}

#[test]
fn a_store_that_fails_in_the_middle_stops_the_run_which_goes_on_when_it_is_mended() {
    let s3 = S3::start();
    let world = targeted(40);
    curate(&s3, &world, &[]).ends_with(0);
    let wanted = stored(&s3, "out");
    for breaking_off in [false, true] {
        world.forget();
        fs::remove_dir_all(s3.object("out")).unwrap();
        // One for the claim, two for shards.
        s3.fail_after_puts(3, breaking_off);
        curate(&s3, &world, &[]).ends_with(1).says("s3://pictures/out/shards/000002.tar");
        assert!(!world.curated("index.json").exists() && !s3.object("out/index.json").exists());
        let before = world.server.asked();
        s3.mend();
        curate(&s3, &world, &[]).ends_with(0);
        assert!(stored(&s3, "out") == wanted);
        let asked = world.server.asked();
        assert!(asked.iter().all(|(path, n)| *n <= before.get(path).copied().unwrap_or(0) + 1));
    }
}

#[test]
fn a_target_that_cannot_be_used_is_refused_before_anybody_is_asked() {
    let s3 = S3::start();
    let world = targeted(12);
    let wrong = |target: &str, change: &dyn Fn(&mut Command), code: i32, says: &str| {
        with_target_replaced(&world, "out", target);
        let mut command = s3.known_to(world.command());
        change(&mut command);
        Finished(command.output().unwrap()).ends_with(code).says(says);
        with_target_replaced(&world, target, "out");
        assert_eq!(world.server.requests(), 0);
    };
    let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    world.document(&recipe.replace("s3://pictures/out", "s3://elsewhere/out"));
    curate(&s3, &world, &[]).ends_with(2).says("there is no such bucket");
    world.document(&recipe.replace("s3://pictures/out", "https://example.org/out"));
    curate(&s3, &world, &[]).ends_with(2).says("shards.target");
    world.document(&recipe);
    wrong(
        "out",
        &|c| {
            c.env("AWS_SECRET_ACCESS_KEY", "wrong");
        },
        2,
        "refuses the credentials",
    );

    // A finished run's place is its own, and a run stays where it is.
    curate(&s3, &world, &[]).ends_with(0);
    let (objects, files) = (stored(&s3, "out"), world.snapshot());
    let mut other = s3.known_to(Command::new(env!("CARGO_BIN_EXE_curate")));
    other.arg("--manifest").arg(world.path("manifest")).arg("--run").arg(world.run_folder().join("../other"));
    copy(&world.path("run/tables"), &world.path("other/tables"));
    Finished(other.output().unwrap()).ends_with(2).says("another run keeps its results here");
    with_target_replaced(&world, "out", "elsewhere");
    curate(&s3, &world, &[]).ends_with(2).says("shards changed");
    assert!((stored(&s3, "out"), world.snapshot()) == (objects, files));
}
