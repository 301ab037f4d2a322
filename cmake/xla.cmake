# The foreign functions for JAX: whether to build them, and by which headers.
#
# They need the headers of XLA's typed interface, which jaxlib brings along, and nothing of it to link
# with: the interface is a table of C functions that a program hands over. The interpreter is asked in
# isolated mode (-I): pip builds a package where its user's packages are hidden, by variables that this
# mode ignores.

macro(bnext_without_foreign_functions reason)
  bnext_without(BNEXT_XLA "foreign functions for JAX" "${reason}" "")
  return()
endmacro()

# BNEXT_XLA_INCLUDE_DIR: the folder that has xla/ffi/api/ffi.h; looked for anew in every build, since
# environments come and go.
function(bnext_find_foreign_headers result)
  set(folder "${BNEXT_XLA_INCLUDE_DIR}")
  if(NOT folder)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -I -c "import importlib.util, os; \
found = importlib.util.find_spec('jaxlib'); \
print(os.path.join(list(found.submodule_search_locations)[0], 'include') if found else '')"
      OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  set(${result} "${folder}" PARENT_SCOPE)
endfunction()

function(bnext_add_foreign_functions module)
  if(NOT BNEXT_XLA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "bnext: BNEXT_XLA: expected AUTO, ON or OFF, got ${BNEXT_XLA}")
  endif()
  if(BNEXT_XLA STREQUAL "OFF")
    return()
  endif()
  bnext_find_foreign_headers(folder)
  if(NOT folder)
    bnext_without_foreign_functions("${Python_EXECUTABLE} has no jaxlib, which brings the headers along \
(pip install jaxlib; or BNEXT_XLA_INCLUDE_DIR names their folder)")
  elseif(NOT EXISTS "${folder}/xla/ffi/api/ffi.h")
    bnext_without_foreign_functions("${folder} lacks xla/ffi/api/ffi.h")
  endif()
  message(STATUS "bnext: foreign functions for JAX by ${folder}")
  # An object of its own: the headers warn, and define a namespace xla.
  add_library(bnext_xla OBJECT csrc/xla/handlers.cpp csrc/xla/row_handlers.cpp
              csrc/xla/cell_handlers.cpp)
  target_include_directories(bnext_xla SYSTEM PRIVATE "${folder}")
  target_link_libraries(bnext_xla PRIVATE bnext_cpu bnext_flags)
  target_link_libraries(${module} PRIVATE bnext_xla)
  target_compile_definitions(${module} PRIVATE BNEXT_XLA)
endfunction()
