//! A base model by its name, from a hub on loopback.

use std::fs;

use super::hub_server::{Faults, HubServer};
use super::world::{MODEL_TOML, World, assert_ends, contents};

#[test]
fn a_model_is_fetched_by_its_name_and_used_from_the_cache_ever_after() {
    let (by_folder, by_name) = (World::new(), World::new());
    assert_ends(&by_folder.encode(), 0, "8 samples encoded");
    let hashes = |world: &World| world.index().shards.iter().map(|shard| shard.sha256).collect::<Vec<_>>();

    let model = by_name.manifest().join("model");
    // `encode-latents` itself has no use for these two.
    for (file, text) in [("scheduler/scheduler_config.json", "{}"), ("unet/config.json", "{}")] {
        fs::create_dir_all(model.join(file).parent().unwrap()).unwrap();
        fs::write(model.join(file), text).unwrap();
    }
    fs::write(model.join("unet/diffusion_pytorch_model.safetensors"), b"not looked at").unwrap();
    let server = HubServer::of_folder(&model, Faults { cuts: 1, ..Faults::default() });
    fs::remove_dir_all(&model).unwrap();
    fs::write(by_name.manifest().join("model.toml"), MODEL_TOML.replace("'model'", "'hf:acme/small-xl'")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let command = |offline: &str| {
        let mut command = by_name.command();
        command.env("HF_HOME", home.path()).env("HF_ENDPOINT", server.url()).env("HF_HUB_OFFLINE", offline);
        for variable in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
            command.env_remove(variable);
        }
        command
    };
    assert_ends(&command("1").output().unwrap(), 2, "hf:acme/small-xl: there is nothing of it in");
    assert_ends(&command("0").output().unwrap(), 0, "8 samples encoded");
    assert_eq!(hashes(&by_name), hashes(&by_folder));

    let (asked, before) = (server.requests().len(), contents(&by_name.latents()));
    assert_ends(&command("1").output().unwrap(), 0, "8 samples are encoded already");
    assert_ends(&command("0").output().unwrap(), 0, "8 samples are encoded already");
    assert_eq!(server.requests().len(), asked, "what is cached is not asked for again");
    assert_eq!(contents(&by_name.latents()), before);
}
