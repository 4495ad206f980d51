//! Finds TensorRT's headers and compiles one copy of the C++ shim per ABI.
//!
//! Nothing of TensorRT is linked: headers are needed here, libraries only at run time.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=TRTVLM_SDK");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let sdk = env::var_os("TRTVLM_SDK").map_or_else(|| root.join(".sdk"), PathBuf::from);
    let sdk = std::path::absolute(&sdk).unwrap_or(sdk);
    // Where the program looks for libraries when the loader does not find them: on this machine, not on
    // the one that it is built for, where that is another.
    let stays = env::var_os("HOST") == env::var_os("TARGET");
    let recorded = if stays { sdk.as_path() } else { "".as_ref() };
    println!("cargo::rustc-env=TRTVLM_SDK_DIR={}", recorded.display());
    #[cfg(feature = "tensorrt")]
    tensorrt::build(&sdk);
}

#[cfg(feature = "tensorrt")]
mod tensorrt {
    use std::collections::BTreeMap;
    use std::env;
    use std::fmt::Write as _;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::{Command, exit};

    /// The headers of one TensorRT.
    struct Headers {
        dir: PathBuf,
        /// Names the ABI: flavour and major version, for example `rtx1`.
        key: String,
        rtx: bool,
        version: [u32; 3],
    }

    pub fn build(sdk: &Path) {
        for name in [
            "TENSORRT_INCLUDE_DIR",
            "CUDA_HOME",
            "CUDA_PATH",
            "LIBCLANG_PATH",
            "TRTVLM_WERROR",
        ] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        println!("cargo::rerun-if-changed=cpp");
        // `make sdk` writes its stamp last; a folder filled by hand is watched as a whole.
        let stamp = sdk.join("stamp");
        let watched = [stamp.as_path(), sdk]
            .into_iter()
            .find(|path| path.exists());
        if let Some(path) = watched {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        let headers = find_headers(sdk);
        let cuda = cuda_include(sdk);
        // Where the tests find them, who compile libraries of their own.
        let folders: Vec<String> = headers
            .iter()
            .map(|set| format!("{}={}", set.key, set.dir.display()))
            .collect();
        println!("cargo::rustc-env=TRTVLM_HEADERS={}", folders.join(":"));
        println!("cargo::rustc-env=TRTVLM_CUDA_HEADERS={}", cuda.display());
        compile(&headers, &cuda);
        constants(&headers, &cuda, sdk);
    }

    /// Ends the build with one error that says what to do.
    fn fail(message: &str) -> ! {
        println!("cargo::error={message}");
        exit(1);
    }

    /// The folders of `TENSORRT_INCLUDE_DIR`, which is a list like `PATH`.
    fn named_folders() -> Vec<PathBuf> {
        env::var_os("TENSORRT_INCLUDE_DIR").map_or_else(Vec::new, |list| {
            env::split_paths(&list)
                .filter(|p| !p.as_os_str().is_empty())
                .collect()
        })
    }

    fn system_folders() -> Vec<PathBuf> {
        let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
        let multiarch = format!("/usr/include/{arch}-linux-gnu");
        let folders = [
            &multiarch,
            "/usr/include",
            "/usr/local/include",
            "/usr/local/tensorrt/include",
        ];
        folders.map(PathBuf::from).to_vec()
    }

    /// The folder that holds `cuda_runtime_api.h`, which TensorRT's headers include.
    fn cuda_include(sdk: &Path) -> PathBuf {
        let mut folders = named_folders();
        for name in ["CUDA_HOME", "CUDA_PATH"] {
            folders.extend(env::var_os(name).map(|home| Path::new(&home).join("include")));
        }
        folders.push("/usr/local/cuda/include".into());
        folders.extend(system_folders());
        folders.push(sdk.join("cuda/include"));
        let found = folders
            .into_iter()
            .find(|dir| dir.join("cuda_runtime_api.h").is_file());
        found.unwrap_or_else(|| {
            fail(
                "cuda_runtime_api.h was not found, which TensorRT's headers need: run `make sdk`, \
                 or set CUDA_HOME to a CUDA toolkit",
            )
        })
    }

    /// One set of headers per ABI: those named by the user, then the system's, then the SDK's.
    fn find_headers(sdk: &Path) -> Vec<Headers> {
        let named = named_folders();
        let mut folders = named.clone();
        folders.extend(system_folders());
        let mut in_sdk: Vec<PathBuf> = fs::read_dir(sdk)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("include"))
            .collect();
        in_sdk.sort();
        folders.extend(in_sdk);

        let mut found = BTreeMap::new();
        for dir in folders {
            let is_named = named.contains(&dir);
            if !dir.join("NvInferVersion.h").is_file() {
                if is_named && !dir.join("cuda_runtime_api.h").is_file() {
                    fail(&format!(
                        "TENSORRT_INCLUDE_DIR: no NvInferVersion.h in {}",
                        dir.display()
                    ));
                }
                continue;
            }
            println!(
                "cargo::rerun-if-changed={}",
                dir.join("NvInferVersion.h").display()
            );
            match read_headers(&dir) {
                Ok(headers) => {
                    found.entry(headers.key.clone()).or_insert(headers);
                }
                Err(reason) if is_named => fail(&reason),
                Err(reason) => println!("cargo::warning={reason}"),
            }
        }
        if found.is_empty() {
            fail(
                "no TensorRT headers were found: run `make sdk`, which fetches those of TensorRT-RTX \
                 and TensorRT 11, or set TENSORRT_INCLUDE_DIR to the folder that holds NvInfer.h \
                 (TensorRT 10.3 or newer, or TensorRT-RTX)",
            );
        }
        found.into_values().collect()
    }

    /// Asks the preprocessor for flavour and version, since the macros refer to one another.
    fn read_headers(dir: &Path) -> Result<Headers, String> {
        for name in ["NvInfer.h", "NvOnnxParser.h"] {
            if !dir.join(name).is_file() {
                return Err(format!(
                    "{} has no {name}, so it is not used",
                    dir.display()
                ));
            }
        }
        let probe = out_dir().join("version_probe.cpp");
        let text = "#include <NvInferVersion.h>\n#ifdef TRT_MAJOR_RTX\ntrtvlm_flavour rtx\n\
                    #else\ntrtvlm_flavour enterprise\n#endif\n\
                    trtvlm_version NV_TENSORRT_MAJOR NV_TENSORRT_MINOR NV_TENSORRT_PATCH\n";
        write(&probe, text);
        let mut preprocessor = cc::Build::new();
        preprocessor
            .cpp(true)
            .cargo_metadata(false)
            .include(dir)
            .file(&probe);
        let output = preprocessor
            .try_expand()
            .map_err(|e| format!("{}: NvInferVersion.h: {e}", dir.display()))?;
        let output = String::from_utf8_lossy(&output);
        let words_after = |key: &str| -> Vec<String> {
            let line = output.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        let rtx = words_after("trtvlm_flavour") == ["rtx"];
        let version: Vec<u32> = words_after("trtvlm_version")
            .iter()
            .filter_map(|word| word.parse().ok())
            .collect();
        let &[major, minor, patch] = version.as_slice() else {
            return Err(format!(
                "{}: NvInferVersion.h names no version",
                dir.display()
            ));
        };
        if !rtx && (major, minor) < (10, 3) {
            return Err(format!(
                "{} has the headers of TensorRT {major}.{minor}, 10.3 is the oldest that is supported",
                dir.display()
            ));
        }
        let flavour = if rtx { "rtx" } else { "enterprise" };
        Ok(Headers {
            dir: dir.to_path_buf(),
            key: format!("{flavour}{major}"),
            rtx,
            version: [major, minor, patch],
        })
    }

    /// The bridge and the loader once, the shim once per ABI.
    fn compile(headers: &[Headers], cuda: &Path) {
        let mut bridge = cxx_build::bridge("src/trt/ffi.rs");
        let list: Vec<String> = headers
            .iter()
            .map(|h| format!("TRTVLM_ABI({})", h.key))
            .collect();
        strict(&mut bridge)
            .file("cpp/loader.cpp")
            .define("TRTVLM_ABIS", list.join(" ").as_str())
            .compile("trtvlm_bridge");
        for set in headers {
            // The two folders are where cxx_build puts its header and links this package.
            let generated = out_dir().join("cxxbridge");
            let mut shim = cc::Build::new();
            strict(&mut shim)
                .cpp(true)
                .file("cpp/shim.cpp")
                .include(generated.join("include"))
                .include(generated.join("crate"))
                .flag(search_flag(&set.dir))
                .flag(&set.dir)
                .flag(search_flag(cuda))
                .flag(cuda)
                .define("TRTVLM_ABI", set.key.as_str())
                .define("nvinfer1", format!("nvinfer1_{}", set.key).as_str())
                .define("nvonnxparser", format!("nvonnxparser_{}", set.key).as_str())
                .compile(&format!("trtvlm_shim_{}", set.key));
        }
        println!("cargo::rustc-link-lib=dl");
    }

    /// How the compiler is told of a folder of headers whose warnings are not ours. The system's
    /// own folders must not move to the front of its list, where the C++ headers, which include
    /// the *next* header of a name, would not find the C ones behind them.
    fn search_flag(dir: &Path) -> &'static str {
        let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
        match system_folders().contains(&dir) {
            true => "-idirafter",
            false => "-isystem",
        }
    }

    fn strict(build: &mut cc::Build) -> &mut cc::Build {
        let werror = env::var_os("TRTVLM_WERROR").is_some_and(|value| value == "1");
        build
            .std("c++17")
            .extra_warnings(true)
            .warnings(true)
            .warnings_into_errors(werror)
    }

    /// The enum `namespace::...::name` in bindgen's output: its module and its constants. Headers
    /// differ in whether a versioned inline namespace stands between.
    fn enumerators<'a>(bindings: &'a str, namespace: &str, name: &str) -> (&'a str, Vec<&'a str>) {
        let modules = bindings
            .split("pub mod ")
            .skip(1)
            .filter_map(|rest| rest.split_once(" {"));
        let mut found = modules.filter(|(module, _)| {
            module.starts_with(namespace) && module.ends_with(&format!("_{name}"))
        });
        let Some((module, rest)) = found.next() else {
            return ("", Vec::new());
        };
        let body = rest.split_once('}').map_or("", |(body, _)| body);
        let constants = body.split("pub const ").skip(1);
        (
            module,
            constants
                .filter_map(|c| Some(c.split_once(':')?.0))
                .collect(),
        )
    }

    /// TensorRT's version and enums as Rust constants, and a table of them: `OUT_DIR/trt_abis.rs`.
    fn constants(headers: &[Headers], cuda: &Path, sdk: &Path) {
        point_bindgen_at_libclang(sdk);
        let mut modules = String::new();
        let mut table = String::from("pub(super) static ABIS: &[Abi] = &[\n");
        for set in headers {
            let bindings = bindgen::Builder::default()
                .header_contents(
                    "trtvlm_constants.hpp",
                    "#include <NvInfer.h>\n#include <NvOnnxParser.h>\n",
                )
                .clang_args(["-x", "c++", "-std=c++17", search_flag(&set.dir)])
                .clang_arg(set.dir.display().to_string())
                .clang_arg(search_flag(cuda))
                .clang_arg(cuda.display().to_string())
                .clang_args(compiler_headers())
                .allowlist_var("NV_TENSORRT_(MAJOR|MINOR|PATCH)")
                .allowlist_type(
                    "nvinfer1::(DataType|BuilderFlag|ComputeCapability|.*ILogger_Severity)",
                )
                .allowlist_type("nvonnxparser::ErrorCode")
                .default_enum_style(bindgen::EnumVariation::ModuleConsts)
                .generate_comments(false)
                .layout_tests(false)
                .generate()
                .unwrap_or_else(|e| fail(&format!("bindgen on {}: {e}", set.dir.display())));
            let file = out_dir().join(format!("trt_{}.rs", set.key));
            let bindings = bindings.to_string();
            write(&file, &bindings);
            let key = &set.key;
            // The path is absolute, so the include works from any file.
            let _ = writeln!(
                modules,
                "#[allow(dead_code, missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, clippy::all)]"
            );
            let _ = writeln!(
                modules,
                "mod {key} {{ include!({:?}); }}",
                file.display().to_string()
            );
            let [major, minor, patch] = set.version;
            let _ = writeln!(
                modules,
                "const _: () = assert!({key}::NV_TENSORRT_MAJOR == {major} && {key}::NV_TENSORRT_MINOR == {minor} && {key}::NV_TENSORRT_PATCH == {patch});"
            );
            let _ = writeln!(
                table,
                "Abi {{ key: {key:?}, rtx: {}, version: [{key}::NV_TENSORRT_MAJOR, {key}::NV_TENSORRT_MINOR, {key}::NV_TENSORRT_PATCH],",
                set.rtx
            );
            for (field, namespace, name) in [
                ("data_types", "nvinfer1", "DataType"),
                ("builder_flags", "nvinfer1", "BuilderFlag"),
                ("compute_capabilities", "nvinfer1", "ComputeCapability"),
                ("severities", "nvinfer1", "ILogger_Severity"),
                ("parser_errors", "nvonnxparser", "ErrorCode"),
            ] {
                let (module, names) = enumerators(&bindings, namespace, name);
                let item = |n: &&str| format!("({n:?}, {key}::{module}::{n})");
                let items: Vec<String> = names.iter().map(item).collect();
                let _ = writeln!(table, "  {field}: &[{}],", items.join(", "));
            }
            table.push_str("},\n");
        }
        table.push_str("];\n");
        write(&out_dir().join("trt_abis.rs"), &(modules + &table));
    }

    /// The SDK's libclang serves where the user names none; `LIBCLANG_PATH` is how bindgen is told.
    fn point_bindgen_at_libclang(sdk: &Path) {
        let folder = sdk.join("libclang");
        if env::var_os("LIBCLANG_PATH").is_none() && folder.join("libclang.so").is_file() {
            // SAFETY: the build script has one thread here: cc's jobs have ended in `compile`.
            #[allow(unsafe_code)]
            unsafe {
                env::set_var("LIBCLANG_PATH", folder);
            }
        }
    }

    /// Search path for `stddef.h` and its like, for a libclang that comes without its own.
    fn compiler_headers() -> Vec<String> {
        let compiler = cc::Build::new().cpp(true).get_compiler();
        let output = Command::new(compiler.path())
            .arg("-print-file-name=include")
            .output();
        let folder = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        match folder {
            Ok(folder) if Path::new(&folder).is_dir() => vec!["-idirafter".into(), folder],
            _ => Vec::new(),
        }
    }

    fn out_dir() -> PathBuf {
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"))
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap_or_else(|e| fail(&format!("{}: {e}", path.display())));
    }
}
