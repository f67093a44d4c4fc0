// Functions that the Python binding calls are exported from the shared library, under names of C: whatever the library
// exports begins with mxfp4moe_. A function that the binding calls and that lacks this mark is an undefined symbol, at
// which the import of the extension fails.
#pragma once

#if defined(__ELF__)
#define MXFP4MOE_EXPORTED(name) __asm__("mxfp4moe_core_" #name) __attribute__((visibility("default")))
#else
#define MXFP4MOE_EXPORTED(name)
#endif
