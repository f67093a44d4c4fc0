# Toolchain of .ci/aarch64.sh: Debian's cross compiler, and the files that the script lays out.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
get_filename_component(tree "${CMAKE_CURRENT_LIST_DIR}/../build/aarch64" ABSOLUTE)
set(CMAKE_SYSROOT "${tree}/sysroot")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)

# The build is for the emulated Python, whichever the host's is.
set(Python_EXECUTABLE "${tree}/venv/bin/python")
set(Python_INCLUDE_DIR "${CMAKE_SYSROOT}/usr/include/python3.11")
