# What is installed besides the Python extension: in a wheel, inside the package; otherwise where the system has such
# files, with a static library beside the shared one.
include(GNUInstallDirs)
set(capi_dir ${CMAKE_CURRENT_SOURCE_DIR}/src/cpp/capi)
if(DEFINED SKBUILD)
  set(library_dir mxfp4moe/lib)
  set(include_dir mxfp4moe/include)
  # For Cython: the constants of the header, which then stand there alone, each with its value.
  file(READ ${capi_dir}/include/mxfp4moe.h header)
  string(REGEX MATCHALL "MXFP4MOE_[A-Z0-9_]+ = " constants "${header}")
  list(TRANSFORM constants REPLACE " = " "")
  list(JOIN constants "\n        " constants)
  configure_file(${capi_dir}/capi.pxd.in capi.pxd @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/capi.pxd DESTINATION mxfp4moe)
else()
  set(library_dir ${CMAKE_INSTALL_LIBDIR})
  set(include_dir ${CMAKE_INSTALL_INCLUDEDIR})
  # The version of the shared library is that of its interface; in a wheel there are no links, and one file.
  file(STRINGS ${capi_dir}/include/mxfp4moe.h abi REGEX "^#define MXFP4MOE_ABI_VERSION ")
  string(REGEX REPLACE ".* " "" abi "${abi}")
  set_target_properties(mxfp4moe_shared PROPERTIES SOVERSION ${abi} VERSION ${abi}.${MXFP4MOE_VERSION})
  set_target_properties(mxfp4moe_cpp PROPERTIES EXCLUDE_FROM_ALL OFF)
  install(TARGETS mxfp4moe_cpp ARCHIVE DESTINATION ${library_dir})
endif()
install(TARGETS mxfp4moe_shared LIBRARY DESTINATION ${library_dir})
install(DIRECTORY ${capi_dir}/include/ DESTINATION ${include_dir})

# Both find the files from where they are themselves, so that what is installed can be moved.
file(RELATIVE_PATH prefix_from_library /${library_dir}/pkgconfig /)
file(RELATIVE_PATH include_from_library /${library_dir}/cmake/mxfp4moe /${include_dir})
configure_file(${capi_dir}/mxfp4moe.pc.in mxfp4moe.pc @ONLY)
configure_file(${capi_dir}/mxfp4moeConfig.cmake.in mxfp4moeConfig.cmake @ONLY)
include(CMakePackageConfigHelpers)
write_basic_package_version_file(mxfp4moeConfigVersion.cmake VERSION ${MXFP4MOE_VERSION}
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mxfp4moe.pc DESTINATION ${library_dir}/pkgconfig)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mxfp4moeConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/mxfp4moeConfigVersion.cmake
  DESTINATION ${library_dir}/cmake/mxfp4moe)
