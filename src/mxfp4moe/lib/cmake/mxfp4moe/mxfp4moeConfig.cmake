# find_package(mxfp4moe): the target mxfp4moe::mxfp4moe, and mxfp4moe::static where there is a static library.
get_filename_component(_mxfp4moe_include "${CMAKE_CURRENT_LIST_DIR}/../../../include" ABSOLUTE)
get_filename_component(_mxfp4moe_library "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
if(NOT TARGET mxfp4moe::mxfp4moe)
  add_library(mxfp4moe::mxfp4moe SHARED IMPORTED)
  set_target_properties(mxfp4moe::mxfp4moe PROPERTIES
    IMPORTED_LOCATION "${_mxfp4moe_library}/libmxfp4moe.so"
    INTERFACE_INCLUDE_DIRECTORIES "${_mxfp4moe_include}")
  if(EXISTS "${_mxfp4moe_library}/libmxfp4moe.a")
    include(CMakeFindDependencyMacro)
    find_dependency(Threads)
    add_library(mxfp4moe::static STATIC IMPORTED)
    set_target_properties(mxfp4moe::static PROPERTIES
      IMPORTED_LOCATION "${_mxfp4moe_library}/libmxfp4moe.a"
      IMPORTED_LINK_INTERFACE_LANGUAGES CXX
      INTERFACE_LINK_LIBRARIES Threads::Threads
      INTERFACE_INCLUDE_DIRECTORIES "${_mxfp4moe_include}")
  endif()
endif()
