// The kernel table, made of the functions that the headers before this one define. Included last inside a kernel
// table's own namespace.

constexpr QuantizeKernels make_quantize_kernels() {
  QuantizeKernels kernels{};
  kernels.quantize_mx = quantize_mx;
  kernels.dequantize_mx = dequantize_mx;
  kernels.scale_block_amax = scale_block_amax;
  kernels.quantize_scale_block = quantize_scale_block;
  kernels.dequantize_scale_block = dequantize_scale_block;
  kernels.quantize_nvfp4 = quantize_nvfp4;
  kernels.dequantize_nvfp4 = dequantize_nvfp4;
  return kernels;
}

// `required` holds CpuFeature bits. The result is a constant: the object file needs no initializer.
constexpr KernelTable make_table(const char* name, const char* isa, uint32_t required, bool automatic) {
  constexpr WeightKernels kWeightKernels[kNumWeightFormats] = MXFP4MOE_ALL_FORMATS(gate_up, accumulate);
  KernelTable table{};
  table.name = name;
  table.isa = isa;
  table.required = required;
  table.automatic = automatic;
  table.scales_halves = kScalesHalves;
  table.group_tokens = group_tokens;
  table.padded_tokens = padded_tokens;
  table.operand_bytes = operand_bytes;
  table.scratch_bytes = scratch_bytes;
  table.pack_tokens = pack_tokens;
  for (int format = 0; format < kNumWeightFormats; ++format) table.weights[format] = kWeightKernels[format];
  table.store_output = store_output;
  table.quantize = make_quantize_kernels();
  table.read_memory = read_memory;
  table.peak_flops = peak_flops;
  return table;
}
