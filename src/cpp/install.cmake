# What is installed besides the Python extension: in a wheel, inside the package; otherwise where the system has such
# files, with a static library beside the shared one.
include(GNUInstallDirs)
if(DEFINED SKBUILD)
  set(library_dir mxfp4moe/lib)
  set(include_dir mxfp4moe/include)
else()
  set(library_dir ${CMAKE_INSTALL_LIBDIR})
  set(include_dir ${CMAKE_INSTALL_INCLUDEDIR})
  set_target_properties(mxfp4moe_cpp PROPERTIES EXCLUDE_FROM_ALL OFF)
  install(TARGETS mxfp4moe_cpp ARCHIVE DESTINATION ${library_dir})
endif()
install(TARGETS mxfp4moe_shared LIBRARY DESTINATION ${library_dir})
