//! Limits on everything that comes from outside, in one place.
//!
//! A value above its limit is refused with [`Error::TooLarge`](crate::Error::TooLarge) before
//! memory for it is asked for.

/// Largest JSON or text file of a model folder or bundle, in bytes (published tokenizers have
/// up to 20 MB).
pub const TEXT_FILE_BYTES: u64 = 64 << 20;

/// Largest manifest of a bundle, in bytes.
pub const MANIFEST_BYTES: u64 = 4 << 20;

/// Most files and folders in a bundle.
pub const BUNDLE_FILES: u64 = 4096;

/// Longest name of a file in a bundle, folders included, in bytes.
pub const BUNDLE_NAME_BYTES: usize = 1024;

/// Deepest nesting of folders in a bundle.
pub const BUNDLE_DEPTH: usize = 8;

/// Largest file of weights that is downloaded, in bytes.
pub const WEIGHT_FILE_BYTES: u64 = 16 << 30;

/// Largest encoded image file, in bytes.
pub const IMAGE_FILE_BYTES: u64 = 256 << 20;

/// Largest image, in pixels (width x height): 100 megapixels, above any machine-vision camera.
pub const IMAGE_PIXELS: u64 = 100_000_000;

/// Largest image side, in pixels.
pub const IMAGE_SIDE: u32 = 32_768;

/// Largest question, in bytes.
pub const PROMPT_BYTES: usize = 64 << 10;

/// Largest number of positions of a prompt with its answer, whatever the model's configuration
/// says.
pub const CONTEXT_TOKENS: usize = 32_768;

/// Largest number of image tiles of one frame.
pub const TILES: usize = 64;

/// Largest ONNX file that is parsed, weights inside the file included, in bytes (protobuf's own
/// limit is 2 GiB).
pub const ONNX_FILE_BYTES: u64 = 2 << 30;

/// Largest number of nodes of one ONNX graph, subgraphs included.
pub const ONNX_NODES: usize = 200_000;

/// Most memory that an ONNX file may take when it is decoded, weights that stay in the file not
/// counted, in bytes: five thousand for each of [`ONNX_NODES`] nodes.
pub const ONNX_DECODED_BYTES: u64 = 1 << 30;

/// Deepest nesting of ONNX subgraphs.
pub const ONNX_DEPTH: usize = 8;

/// Largest number of elements of one tensor.
pub const TENSOR_ELEMENTS: u64 = 1 << 33;

/// Largest number of elements of a tensor that a node makes on the CPU engine (4 GiB of f32): the
/// attention scores of 64 tiles are below it.
pub const CPU_TENSOR_ELEMENTS: u64 = 1 << 30;

/// Most layers of a decoder.
pub const DECODER_LAYERS: usize = 256;

/// Largest KV cache of a decoder at its full context, in 32-bit numbers, in bytes: four times that
/// of a 7B model.
pub const KV_CACHE_BYTES: u64 = 16 << 30;

/// Largest embedding table of a decoder in 32-bit numbers, in bytes.
pub const EMBEDDING_BYTES: u64 = 16 << 30;

/// Largest vocabulary.
pub const VOCABULARY: usize = 1 << 20;

/// Largest width of a decoder (hidden size, heads, width of a head).
pub const MODEL_WIDTH: usize = 1 << 16;

/// Largest side of a vision tower's input, in pixels.
pub const VISION_SIDE: usize = 4096;

/// Longest chat template, and longest text that one may write, in bytes.
pub const TEMPLATE_BYTES: usize = 1 << 20;

/// Most instructions that a chat template may execute.
pub const TEMPLATE_STEPS: u64 = 100_000;

/// Deepest recursion of a chat template.
pub const TEMPLATE_DEPTH: usize = 64;

/// Most tokens of a chat template.
pub const TEMPLATE_TOKENS: usize = 32_768;

/// Most tokens of one tag of a chat template.
pub const TEMPLATE_TAG_TOKENS: usize = 4096;

/// Largest value that a chat template may compute, in bytes, shared parts counted each time.
pub const TEMPLATE_VALUE_BYTES: u64 = 256 << 10;

/// Most bytes of values that a chat template may compute in all.
pub const TEMPLATE_WORK_BYTES: u64 = 16 << 20;
/// Longest line of a list of items, in bytes.
pub const ITEM_LINE_BYTES: u64 = 1 << 20;

/// Most items of a list, and most pictures of a folder.
pub const ITEMS: usize = 100_000;

/// Deepest nesting of a folder of pictures.
pub const ITEM_DEPTH: usize = 16;

/// Largest file of scales, in bytes (FastVLM-0.5B has about 4 MB).
pub const SCALES_BYTES: u64 = 256 << 20;

/// Largest file that a calibration is continued from, in bytes.
pub const CALIBRATION_STATE_BYTES: u64 = 1 << 30;

/// Largest file of measured costs of drafts, in bytes.
pub const DRAFT_COSTS_BYTES: u64 = 64 << 10;

/// Largest file of refused drafts, in bytes: some hundred thousand answers.
pub const CORRECTIONS_BYTES: u64 = 64 << 20;

/// Largest `pruner.safetensors`, `router.safetensors` or `quick.safetensors`, in bytes.
pub const TRAINED_FILE_BYTES: u64 = 64 << 20;
