# libhla as a thing to be linked into a program: beside other threads, short of memory, the programs of examples/, what it
# exports, its binary interface, its installation.
add_subdirectory(${HLA_ROOT}/examples ${CMAKE_CURRENT_BINARY_DIR}/examples_programs)

# Contexts and teams beside each other; and memory that runs out.
hla_test(test_teams fast SOURCES test_teams.c LIBRARIES hla_objects)
hla_test(test_allocation fast SOURCES test_allocation.c LIBRARIES hla_objects)
foreach(function malloc calloc aligned_alloc realloc free)
  target_link_options(test_allocation PRIVATE -Wl,--wrap=${function})
endforeach()

# The tests below look at a library that this machine runs, as a user would have it.
if(CMAKE_CROSSCOMPILING OR HLA_SANITIZE OR HLA_FUZZ)
  return()
endif()
add_test(NAME test_exports COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/test_exports.sh $<TARGET_FILE:hla> ${HLA_ROOT}/include)
get_target_property(version hla VERSION)
add_test(NAME test_install
         COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/test_install.sh ${CMAKE_BINARY_DIR} ${CMAKE_INSTALL_PREFIX}
                 ${CMAKE_INSTALL_LIBDIR} ${version} ${CMAKE_C_COMPILER} ${HLA_ROOT}/examples/forward.c)
set_tests_properties(test_exports test_install PROPERTIES LABELS fast TIMEOUT 300)
find_program(HLA_ABIDIFF abidiff)
if(HLA_ABIDIFF AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  add_test(NAME test_abi COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/abi/check.sh)
  set_tests_properties(test_abi PROPERTIES LABELS fast TIMEOUT 300)
endif()
