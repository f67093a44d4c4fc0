# Toolchain of .ci/wheels/build.sh: the compiler of this machine, the C library of the sysroot.
set(sysroot "$ENV{MXFP4MOE_SYSROOT}")
if("$ENV{MXFP4MOE_ARCH}" STREQUAL "aarch64")
  set(CMAKE_SYSTEM_NAME Linux)
  set(CMAKE_SYSTEM_PROCESSOR aarch64)
  set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
  set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
endif()
set(CMAKE_SYSROOT "${sysroot}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)

# The headers know which C library is meant by this number. Paths of this build must not be in what it makes.
set(flags "-D__GLIBC_MINOR__=28 -ffile-prefix-map=$ENV{PWD}=.")
set(CMAKE_C_FLAGS_INIT "${flags}")
set(CMAKE_CXX_FLAGS_INIT "${flags}")
# The compiler would look into its own folders before those of the sysroot. libgcc_s is that of the C library of this
# machine, which the trial programs of CMake do not meet.
set(CMAKE_EXE_LINKER_FLAGS_INIT "-L${sysroot}/usr/lib -Wl,--allow-shlib-undefined")
set(library_flags "-L${sysroot}/usr/lib -static-libstdc++ -Wl,--exclude-libs,ALL -Wl,--gc-sections -Wl,--build-id=none")
set(CMAKE_MODULE_LINKER_FLAGS_INIT "${library_flags}")
# The extension has the names that it takes of the interpreter; of a library nothing may be missing.
set(CMAKE_SHARED_LINKER_FLAGS_INIT "${library_flags} -Wl,-z,defs")
