# Where a cache of objects is used, lets the compiler see pybind11's headers at one place of the build's
# folder: pip installs them for each build in another, and their path is part of what an object is made of.
function(bnext_find_pybind11_at_one_place)
  if(CMAKE_CXX_COMPILER_LAUNCHER)
    set(place ${PROJECT_BINARY_DIR}/headers)
    file(CREATE_LINK "${pybind11_INCLUDE_DIR}" ${place} SYMBOLIC)
    set_target_properties(pybind11::pybind11_headers PROPERTIES
                          INTERFACE_INCLUDE_DIRECTORIES ${place})
  endif()
endfunction()
