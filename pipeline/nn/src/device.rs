//! The `--device` of the command line.

use tch::Device;

use crate::Error;

/// Parses `cpu`, `cuda` or `cuda:N`, and makes the device ready: CUDA is started where a GPU is meant, which has to be
/// there, and the allocator is set for tensors where it is the CPU.
pub fn parse_device(text: &str) -> Result<Device, Error> {
    let unusable = |reason: String| Error::Device { name: text.to_owned(), reason };
    let index = match text {
        "cpu" => {
            torch_shim::keep_freed_memory();
            return Ok(Device::Cpu);
        }
        "cuda" => 0,
        _ => text
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
            .ok_or_else(|| unusable("expected cpu, cuda or cuda:N".into()))?,
    };
    if !torch_shim::start_cuda() {
        return Err(unusable("this libtorch finds no usable GPU; use --device cpu".into()));
    }
    let count = tch::Cuda::device_count();
    if index as i64 >= count {
        return Err(unusable(format!("there are {count} GPUs, counted from 0")));
    }
    Ok(Device::Cuda(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_are_parsed() {
        assert_eq!(parse_device("cpu").unwrap(), Device::Cpu);
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            let message = parse_device(text).unwrap_err().to_string();
            assert!(message.contains("expected cpu, cuda or cuda:N"), "{message}");
        }
    }
}
