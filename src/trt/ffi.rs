//! The bridge to the C++ shim (an unsafe fence: see `tests/house.rs`).
//!
//! Both sides' signatures stand here and nowhere else. No TensorRT type or enum crosses, and no
//! address of the host: only integers, strings and slices. Addresses of the device are integers that
//! [`super::runtime`] takes from memory which it keeps. Every function that can fail returns a `Result`
//! whose text is `code|message`, taken apart by [`super::error::from_shim`].
#![allow(unsafe_code)]

use super::events::Events;

#[cxx::bridge(namespace = "trtvlm")]
pub(super) mod shim {
    /// One input or output of a network or plan.
    struct IoTensor {
        name: String,
        is_input: bool,
        /// Its values, not only its shape, decide about other shapes.
        is_shape: bool,
        dtype: i32,
        shape: Vec<i64>,
    }

    /// What one input's dimensions may be in one optimization profile.
    struct DimRange {
        input: String,
        min: Vec<i64>,
        opt: Vec<i64>,
        max: Vec<i64>,
    }

    /// One complaint of the ONNX parser; `node` is −1 if it concerns no node.
    struct ParserFault {
        code: i32,
        node: i32,
        node_name: String,
        op: String,
        message: String,
    }

    /// Settings of one build.
    struct Knobs {
        /// A value of TensorRT's `ComputeCapability`, −1 for a flavour that has no such enum.
        target: i32,
        /// 0 leaves TensorRT's own limit.
        workspace_bytes: u64,
        /// −1 leaves TensorRT's own level.
        optimization_level: i32,
        set_flags: u32,
        clear_flags: u32,
        use_timing_cache: bool,
        timing_cache: Vec<u8>,
    }

    extern "Rust" {
        type Events;
        fn wants(self: &Events, severity: i32) -> bool;
        fn log(self: &Events, severity: i32, message: String);
        fn phase_start(self: &Events, phase: String, parent: String, n_steps: i32);
        fn step(self: &Events, phase: String, step: i32) -> bool;
        fn phase_finish(self: &Events, phase: String);
        fn cancelled(self: &Events) -> bool;
    }

    // SAFETY: but for `bind`, `set_scratch` and `enqueue`, which are unsafe to call, none of these functions
    // trusts an address that Rust gives it. They check order of calls, flavour and version
    // themselves, and what they hand out borrows from `self` or owns what it needs.
    unsafe extern "C++" {
        include!("trtvlm/cpp/shim.h");

        type Library;
        fn open_library(infer: &str, parser: &str) -> Result<SharedPtr<Library>>;
        fn version(self: &Library) -> i32;
        fn path(self: &Library) -> String;
        fn parser_path(self: &Library) -> String;
        fn can_build(self: &Library) -> bool;

        type Builder;
        fn new_builder(
            abi: &str,
            library: SharedPtr<Library>,
            events: Box<Events>,
        ) -> Result<UniquePtr<Builder>>;
        fn parse(self: Pin<&mut Builder>, onnx_path: &str) -> Result<bool>;
        fn faults(self: &Builder) -> Result<Vec<ParserFault>>;
        fn io(self: &Builder) -> Result<Vec<IoTensor>>;
        fn add_profile(self: Pin<&mut Builder>, ranges: &[DimRange]) -> Result<()>;
        fn build(self: Pin<&mut Builder>, knobs: &Knobs) -> Result<()>;
        fn plan(self: &Builder) -> Result<&[u8]>;
        fn timing_cache(self: &Builder) -> Result<Vec<u8>>;

        type Plan;
        fn open_plan(
            abi: &str,
            library: SharedPtr<Library>,
            plan_path: &str,
            events: Box<Events>,
        ) -> Result<UniquePtr<Plan>>;
        fn io(self: &Plan) -> Result<Vec<IoTensor>>;
        fn n_profiles(self: &Plan) -> Result<i32>;
        fn profile(self: &Plan, index: i32) -> Result<Vec<DimRange>>;
        fn device_memory_bytes(self: &Plan) -> Result<i64>;
        fn n_layers(self: &Plan) -> Result<i32>;
        fn scratch_bytes(self: &Plan, profile: i32) -> Result<i64>;
        fn new_execution(self: &Plan, profile: i32, stream: u64) -> Result<UniquePtr<Execution>>;

        type Execution;
        fn set_shape(self: Pin<&mut Execution>, input: &str, dims: &[i64]) -> Result<()>;
        unsafe fn bind(self: Pin<&mut Execution>, tensor: &str, address: u64) -> Result<()>;
        unsafe fn set_scratch(self: Pin<&mut Execution>, address: u64, n_bytes: i64) -> Result<()>;
        fn shape(self: &Execution, tensor: &str) -> Result<Vec<i64>>;
        unsafe fn enqueue(self: Pin<&mut Execution>, stream: u64) -> Result<()>;

        #[allow(dead_code)] // for the test of the order of destruction
        fn teardown_order(builder: UniquePtr<Builder>) -> Vec<String>;
        fn exit_now(status: i32);
    }
}

// SAFETY: TensorRT's runtime objects take calls from any one thread at a time, and nothing of them is bound to
// the thread that made them. The receiver of log lines is called from any thread as it is.
unsafe impl Send for shim::Execution {}
// SAFETY: as above.
unsafe impl Send for shim::Plan {}
