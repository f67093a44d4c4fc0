// Opens a packed layer and computes it for one token: layer FILE
//
//   rustc -L native=FOLDER_OF_THE_LIBRARY layer.rs
use std::ffi::{c_char, c_void, CStr, CString};

#[repr(C)]
#[derive(Default)]
struct LayerInfo {
    struct_size: usize,
    format: i32,
    needs_input_ids: i32,
    needs_router_hidden_states: i32,
    num_experts: i64,
    hidden_size: i64,
    intermediate_size: i64,
    top_k: i64,
    num_bytes: i64,
}

#[repr(C)]
struct LayerArgs {
    struct_size: usize,
    hidden_states: *const c_void,
    out: *mut c_void,
    num_tokens: i64,
    hidden_states_stride: i64,
    out_stride: i64,
    hidden_states_dtype: i32,
    out_dtype: i32,
    input_ids: *const i64,
    router_hidden_states: *const c_void,
    router_hidden_states_stride: i64,
    router_hidden_states_dtype: i32,
    propagate_nonfinite: i32,
}

#[repr(C)]
struct Layer {
    _private: [u8; 0],
}

#[link(name = "mxfp4moe")]
extern "C" {
    fn mxfp4moe_last_error() -> *const c_char;
    fn mxfp4moe_open_layer(path: *const c_char, verify: i32, options: *const c_void, layer: *mut *mut Layer) -> i32;
    fn mxfp4moe_close_layer(layer: *mut Layer);
    fn mxfp4moe_get_layer_info(layer: *const Layer, info: *mut LayerInfo) -> i32;
    fn mxfp4moe_apply_layer(layer: *const Layer, args: *const LayerArgs, options: *const c_void) -> i32;
}

fn check(status: i32) -> Result<(), String> {
    match status {
        0 => Ok(()),
        _ => Err(unsafe { CStr::from_ptr(mxfp4moe_last_error()) }.to_string_lossy().into_owned()),
    }
}

fn run(path: &str) -> Result<(), String> {
    let path = CString::new(path).map_err(|error| error.to_string())?;
    let mut layer = std::ptr::null_mut();
    check(unsafe { mxfp4moe_open_layer(path.as_ptr(), 1, std::ptr::null(), &mut layer) })?;
    let mut info = LayerInfo { struct_size: std::mem::size_of::<LayerInfo>(), ..Default::default() };
    check(unsafe { mxfp4moe_get_layer_info(layer, &mut info) })?;
    let x = vec![1.0f32; info.hidden_size as usize];
    let mut y = vec![0.0f32; x.len()];
    let args = LayerArgs {
        struct_size: std::mem::size_of::<LayerArgs>(),
        hidden_states: x.as_ptr().cast(),
        out: y.as_mut_ptr().cast(),
        num_tokens: 1,
        hidden_states_stride: 0,
        out_stride: 0,
        hidden_states_dtype: 0,
        out_dtype: 0,
        input_ids: std::ptr::null(),
        router_hidden_states: std::ptr::null(),
        router_hidden_states_stride: 0,
        router_hidden_states_dtype: 0,
        propagate_nonfinite: 0,
    };
    check(unsafe { mxfp4moe_apply_layer(layer, &args, std::ptr::null()) })?;
    println!("{} {}", y[0], y[y.len() - 1]);
    unsafe { mxfp4moe_close_layer(layer) };
    Ok(())
}

fn main() {
    let path = std::env::args().nth(1).expect("usage: layer FILE");
    if let Err(message) = run(&path) {
        eprintln!("{message}");
        std::process::exit(1);
    }
}
