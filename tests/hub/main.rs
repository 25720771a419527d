//! A model by its name, from a hub on loopback with the faults of real ones.

// Others serve a folder.
#[allow(dead_code)]
#[path = "../common/hub_server.rs"]
mod hub_server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hub::{Error, Hub, ModelName, Patience};
use hub_server::{COMMIT, Faults, HubServer, REPOSITORY, files_of, sha256};
use indicatif::ProgressBar;

const NAME: &str = "hf:acme/small-xl";

/// A repository with everything a pipeline needs and much that it does not. Contents differ with their names.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let contents = |name: &str| -> Vec<u8> {
        let (bytes, salt) = (if name.ends_with(".safetensors") { 100_000 } else { 100 }, sha256(name.as_bytes()));
        (0..bytes).map(|i| (i % 251) as u8 ^ salt.as_bytes()[i % 64]).collect()
    };
    let index = r#"{"metadata": {}, "weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors",
        "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}"#;
    let mut files: BTreeMap<String, Vec<u8>> = [
        "README.md",
        "model_index.json",
        "sd_xl_base_1.0.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer_2/tokenizer.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/model.onnx",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae_1_0/diffusion_pytorch_model.safetensors",
    ]
    .map(|name| (name.to_owned(), contents(name)))
    .into();
    files.insert("unet/diffusion_pytorch_model.safetensors.index.json".into(), index.into());
    files
}

/// A user's machine: an empty cache.
struct Machine {
    cache: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { cache: tempfile::tempdir().unwrap() }
    }

    fn hub(&self, server: &HubServer) -> Hub {
        let patience = Patience {
            connect: Duration::from_secs(5),
            read: Duration::from_secs(5),
            attempts: 3,
            wait: Duration::from_millis(5),
        };
        Hub {
            endpoint: server.url().parse().unwrap(),
            token: None,
            cache: self.cache.path().into(),
            offline: false,
            patience,
        }
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("models--acme--small-xl")
    }
}

fn fetch(hub: &Hub, name: &str) -> hub::Result<PathBuf> {
    hub.model(&name.parse::<ModelName>().unwrap(), &ProgressBar::hidden())
}

fn is_needed(name: &str) -> bool {
    !(name.contains("fp16")
        || name.ends_with(".bin")
        || name.ends_with(".onnx")
        || name.starts_with("sd_xl")
        || name.starts_with("vae_1_0")
        || name == "README.md")
}

/// What a model's folder should be: these files and no others.
fn assert_holds(folder: &Path, wanted: impl Fn(&str) -> bool) {
    let expected: BTreeMap<_, _> = repository().into_iter().filter(|(name, _)| wanted(name)).collect();
    let found = files_of(folder);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found == expected, "contents differ");
}

/// What was asked for in parts, of whoever has it.
fn ranges(server: &HubServer) -> Vec<String> {
    server.requests().into_iter().filter(|request| request.elsewhere).filter_map(|request| request.range).collect()
}

#[test]
fn what_a_pipeline_needs_is_fetched_once_into_pythons_layout() {
    let (server, machine) = (HubServer::start(repository(), Faults::default()), Machine::new());
    let folder = fetch(&machine.hub(&server), NAME).unwrap();
    assert_holds(&folder, is_needed);
    assert_eq!(folder, machine.repository().join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(machine.repository().join("refs/main")).unwrap(), COMMIT);
    let weights = folder.join("vae/diffusion_pytorch_model.safetensors");
    let hash = sha256(&repository()["vae/diffusion_pytorch_model.safetensors"]);
    assert_eq!(std::fs::read_link(weights).unwrap(), Path::new("../../../blobs").join(hash));
    let left = std::fs::read_dir(machine.repository().join("blobs")).unwrap();
    assert!(left.map(|entry| entry.unwrap().file_name()).all(|name| !name.to_str().unwrap().ends_with(".incomplete")));

    let asked = server.requests().len();
    assert_eq!(fetch(&machine.hub(&server), NAME).unwrap(), folder);
    let offline = Hub { offline: true, ..machine.hub(&server) };
    assert_eq!(fetch(&offline, NAME).unwrap(), folder);
    assert_eq!(fetch(&offline, &format!("{NAME}@{COMMIT}")).unwrap(), folder);
    assert_eq!(server.requests().len(), asked, "what is cached is not asked for again");
}

#[test]
fn the_half_size_variant_is_a_choice() {
    let (server, machine) = (HubServer::start(repository(), Faults::default()), Machine::new());
    let folder = fetch(&machine.hub(&server), "hf:acme/small-xl:fp16").unwrap();
    let half = |name: &str| {
        name.contains("fp16")
            || (is_needed(name) && !name.contains("diffusion_pytorch_model") && !name.contains("model.safetensors"))
    };
    assert_holds(&folder, half);
    // The full one is another choice: it comes beside it.
    fetch(&machine.hub(&server), NAME).unwrap();
    assert_holds(&folder, |name| half(name) || is_needed(name));

    let mut no_half = repository();
    no_half.remove("vae/diffusion_pytorch_model.fp16.safetensors");
    let (server, machine) = (HubServer::start(no_half, Faults::default()), Machine::new());
    let error = fetch(&machine.hub(&server), "hf:acme/small-xl:fp16").unwrap_err();
    assert!(error.to_string().contains("holds no vae/diffusion_pytorch_model.fp16.safetensors"), "{error}");
}

#[test]
fn a_cut_download_goes_on_where_it_was() {
    let (server, machine) = (HubServer::start(repository(), Faults { cuts: 2, ..Faults::default() }), Machine::new());
    assert_holds(&fetch(&machine.hub(&server), NAME).unwrap(), is_needed);
    assert_eq!(ranges(&server), ["bytes=50000-", "bytes=75000-"]);
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let (server, machine) = (HubServer::start(repository(), Faults::default()), Machine::new());
    let bytes = &repository()["text_encoder/model.safetensors"];
    let partial = machine.repository().join("blobs").join(format!("{}.incomplete", sha256(bytes)));
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::fs::write(&partial, &bytes[..12_345]).unwrap();
    assert_holds(&fetch(&machine.hub(&server), NAME).unwrap(), is_needed);
    assert_eq!(ranges(&server), ["bytes=12345-"]);
}

#[test]
fn a_server_without_ranges_is_asked_for_the_whole() {
    let faults = Faults { cuts: 1, no_ranges: true, ..Faults::default() };
    let (server, machine) = (HubServer::start(repository(), faults), Machine::new());
    assert_holds(&fetch(&machine.hub(&server), NAME).unwrap(), is_needed);
}

#[test]
fn a_server_that_goes_away_for_good_is_an_error_that_names_the_file_and_leaves_the_beginning() {
    let (server, machine) = (HubServer::start(repository(), Faults::default()), Machine::new());
    server.set(Faults { cuts: usize::MAX, ..Faults::default() });
    // Every try brings half of what is left, until one brings nothing three times.
    let error = fetch(&machine.hub(&server), NAME).unwrap_err();
    assert!(matches!(&error, Error::Network { attempts: 3, .. }), "{error}");
    assert!(error.to_string().contains("text_encoder/model.safetensors"), "{error}");
    assert!(!error.is_input());
    server.set(Faults::default());
    assert_holds(&fetch(&machine.hub(&server), NAME).unwrap(), is_needed);
}

#[test]
fn passing_faults_are_waited_out() {
    let faults = Faults { unavailable: 2, ..Faults::default() };
    let (server, machine) = (HubServer::start(repository(), faults), Machine::new());
    assert_holds(&fetch(&machine.hub(&server), NAME).unwrap(), is_needed);

    let faults = Faults { unavailable: usize::MAX, ..Faults::default() };
    let (server, machine) = (HubServer::start(repository(), faults), Machine::new());
    let error = fetch(&machine.hub(&server), NAME).unwrap_err();
    assert!(error.to_string().contains("status 503, 3 times in a row"), "{error}");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn contents_that_are_not_the_hubs_are_never_linked() {
    let (server, machine) =
        (HubServer::start(repository(), Faults { corrupt: true, ..Faults::default() }), Machine::new());
    let error = fetch(&machine.hub(&server), NAME).unwrap_err();
    assert!(error.to_string().contains("SHA-256 differs"), "{error}");
    assert!(!machine.repository().join("snapshots").join(COMMIT).join("text_encoder/model.safetensors").exists());
    server.set(Faults::default());
    assert_holds(&fetch(&machine.hub(&server), NAME).unwrap(), is_needed);
}

#[test]
fn the_token_goes_to_the_hub_and_no_further() {
    let faults = Faults { token: Some("hf_secret".into()), ..Faults::default() };
    let (server, machine) = (HubServer::start(repository(), faults), Machine::new());
    let error = fetch(&machine.hub(&server), NAME).unwrap_err();
    assert!(error.is_input() && matches!(error, Error::Denied { .. }));
    assert!(error.to_string().contains("401 GatedRepo") && error.to_string().contains("HF_TOKEN"), "{error}");

    let hub = Hub { token: Some("hf_secret".into()), ..machine.hub(&server) };
    assert_holds(&fetch(&hub, NAME).unwrap(), is_needed);
    let requests = server.requests();
    assert!(requests.iter().any(|request| request.elsewhere));
    assert!(requests.iter().filter(|request| request.elsewhere).all(|request| request.authorization.is_none()));
}

#[test]
fn what_is_not_there_is_named() {
    let (server, machine) = (HubServer::start(repository(), Faults::default()), Machine::new());
    let error = fetch(&machine.hub(&server), "hf:acme/other").unwrap_err();
    assert!(
        error.is_input() && error.to_string().contains("/api/models/acme/other/revision/main: not found (404"),
        "{error}"
    );
    let error = fetch(&machine.hub(&server), "hf:acme/small-xl@v2").unwrap_err();
    assert!(error.to_string().contains("/revision/v2: not found"), "{error}");

    let offline = Hub { offline: true, ..machine.hub(&server) };
    let error = fetch(&offline, NAME).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("HF_HUB_OFFLINE is set"), "{error}");

    let mut refiner = repository();
    refiner.retain(|name, _| !name.starts_with("text_encoder/"));
    let (server, machine) = (HubServer::start(refiner, Faults::default()), Machine::new());
    let error = fetch(&machine.hub(&server), NAME).unwrap_err();
    assert!(error.to_string().contains("holds no text_encoder/config.json"), "{error}");
    assert!(server.requests().iter().all(|request| request.path.starts_with("/api/")), "nothing was fetched");

    // Nobody listens on this port any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hub = Hub { endpoint: format!("http://{gone}").parse().unwrap(), ..machine.hub(&server) };
    let error = fetch(&hub, &format!("hf:{REPOSITORY}")).unwrap_err();
    assert!(error.to_string().contains("3 times in a row"), "{error}");
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    let mut hostile = repository();
    let index = r#"{"weight_map": {"a": "../../../etc/x.safetensors"}}"#;
    hostile.insert("unet/diffusion_pytorch_model.safetensors.index.json".into(), index.into());
    let (server, machine) = (HubServer::start(hostile, Faults::default()), Machine::new());
    let error = fetch(&machine.hub(&server), NAME).unwrap_err();
    assert!(error.to_string().contains("no safetensors file beside it"), "{error}");
}

#[test]
fn two_at_once_fetch_each_file_once() {
    let (server, machine) = (HubServer::start(repository(), Faults::default()), Machine::new());
    let hub = machine.hub(&server);
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| fetch(&hub, NAME).unwrap()));
        for one in both {
            assert_holds(&one.join().unwrap(), is_needed);
        }
    });
    let bodies = server.requests().into_iter().filter(|request| request.elsewhere && request.method == "GET");
    // One for each large file: text encoders, VAE and the two shards of the UNet.
    assert_eq!(bodies.count(), 5);
}
