# Toolchain of .ci/aarch64.sh: Debian's cross compiler, and the packages that the script unpacks.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
get_filename_component(CMAKE_SYSROOT "${CMAKE_CURRENT_LIST_DIR}/../build/aarch64/sysroot" ABSOLUTE)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L "${CMAKE_SYSROOT}")

# The build asks the host's Python for these.
set(Python_INCLUDE_DIR "${CMAKE_SYSROOT}/usr/include/python3.11")
set(Python_SOABI cpython-311-aarch64-linux-gnu)
